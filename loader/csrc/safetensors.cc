#include "safetensors.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "checked.h"
#include "errors.h"
#include "json_cursor.h"

namespace serverless_triton::loader {
namespace {

struct DtypeWidth {
    std::string_view name;
    std::uint64_t bits;
};

constexpr std::array kDtypes = {
    DtypeWidth{"BOOL", 8},        DtypeWidth{"U8", 8},          DtypeWidth{"I8", 8},      DtypeWidth{"F4", 4},
    DtypeWidth{"F6_E2M3", 6},     DtypeWidth{"F6_E3M2", 6},     DtypeWidth{"F8_E5M2", 8}, DtypeWidth{"F8_E4M3", 8},
    DtypeWidth{"F8_E5M2FNUZ", 8}, DtypeWidth{"F8_E4M3FNUZ", 8}, DtypeWidth{"F8_E8M0", 8}, DtypeWidth{"I16", 16},
    DtypeWidth{"U16", 16},        DtypeWidth{"F16", 16},        DtypeWidth{"BF16", 16},   DtypeWidth{"I32", 32},
    DtypeWidth{"U32", 32},        DtypeWidth{"F32", 32},        DtypeWidth{"C64", 64},    DtypeWidth{"F64", 64},
    DtypeWidth{"I64", 64},        DtypeWidth{"U64", 64},
};

constexpr std::string_view kMetadataKey = "__metadata__";

std::string quoted(std::string_view name) {
    return std::string("'").append(name).append("'");
}

[[noreturn]] void refuse(std::string_view file_name, const std::string& reason) {
    throw NotSafetensors(std::string(file_name) + " is not a valid safetensors file: " + reason +
                         "; save it again with safetensors, or download it again");
}

[[noreturn]] void refuse_truncated(std::string_view file_name, std::uint64_t file_bytes, std::uint64_t needed_bytes) {
    throw CheckpointTruncated(std::string(file_name) + " is cut off: it has " + std::to_string(file_bytes) +
                              " bytes and its header needs " + std::to_string(needed_bytes) +
                              "; download or copy it again");
}

std::uint64_t bits_of(JsonCursor& json, std::string_view dtype) {
    const auto* found = std::ranges::find(kDtypes, dtype, &DtypeWidth::name);
    if (found == kDtypes.end())
        json.fail("unknown dtype " + quoted(dtype));
    return found->bits;
}

// Reads one tensor's fields in any order; the official reader, too, ignores fields that it does not know.
class TensorFields {
  public:
    explicit TensorFields(JsonCursor& json) : json_(json) {
        json_.read_object([&](const std::string& key) { read_field(key); });
        if (!dtype_ || !shape_ || !offsets_)
            json_.fail("a tensor lacks dtype, shape or data_offsets");
    }

    // Offsets are still relative to the data section.
    [[nodiscard]] TensorEntry take(std::string name) {
        return {std::move(name), std::move(*dtype_), std::move(*shape_), offsets_->first, offsets_->second};
    }

  private:
    void read_field(const std::string& key) {
        if (key == "dtype")
            read_once(dtype_, [&] { return json_.read_string(); });
        else if (key == "shape")
            read_once(shape_, [&] { return read_shape(); });
        else if (key == "data_offsets")
            read_once(offsets_, [&] { return read_offsets(); });
        else
            json_.skip_value();
    }

    template <typename Value, typename Read>
    void read_once(std::optional<Value>& field, Read read) {
        if (field)
            json_.fail("a tensor gives one field twice");
        field = read();
    }

    std::vector<std::uint64_t> read_shape() {
        std::vector<std::uint64_t> shape;
        json_.read_array([&] { shape.push_back(json_.read_unsigned()); });
        return shape;
    }

    std::pair<std::uint64_t, std::uint64_t> read_offsets() {
        const std::vector<std::uint64_t> pair = read_shape();
        if (pair.size() != 2)
            json_.fail("data_offsets must hold two integers");
        return {pair[0], pair[1]};
    }

    JsonCursor& json_;
    std::optional<std::string> dtype_;
    std::optional<std::vector<std::uint64_t>> shape_;
    std::optional<std::pair<std::uint64_t, std::uint64_t>> offsets_;
};

void check_metadata(JsonCursor& json) {
    if (json.consume_null())
        return;
    json.read_object([&](const std::string&) { static_cast<void>(json.read_string()); });
}

// Multiplies from the left and stops at an overflow, as the official reader does: [0, 2^40, 2^40] is an empty tensor,
// [2^40, 2^40, 0] is refused.
std::optional<std::uint64_t> bytes_of(const TensorEntry& tensor, std::uint64_t bits_per_element) {
    std::optional<std::uint64_t> elements = 1;
    for (const std::uint64_t dimension : tensor.shape) {
        if (elements)
            elements = checked_multiply(*elements, dimension);
    }
    const auto bits = elements ? checked_multiply(*elements, bits_per_element) : std::nullopt;
    if (!bits || *bits % 8 != 0)
        return std::nullopt;
    return *bits / 8;
}

void check_size(JsonCursor& json, const TensorEntry& tensor) {
    const auto bytes = bytes_of(tensor, bits_of(json, tensor.dtype));
    if (!bytes)
        json.fail("the size of tensor " + quoted(tensor.name) + " overflows or is no whole number of bytes");
    if (tensor.end < tensor.begin || tensor.end - tensor.begin != *bytes) {
        json.fail("data_offsets of tensor " + quoted(tensor.name) + " do not fit its shape and dtype");
    }
}

std::vector<TensorEntry> read_tensors(JsonCursor& json) {
    std::vector<TensorEntry> tensors;
    std::unordered_set<std::string> names;
    json.read_object([&](const std::string& name) {
        if (!names.insert(name).second)
            json.fail("the name " + quoted(name) + " appears twice");
        if (name == kMetadataKey)
            return check_metadata(json);
        tensors.push_back(TensorFields(json).take(name));
        check_size(json, tensors.back());
    });
    json.expect_end();
    return tensors;
}

// Sorts by offset and demands that the tensors tile the data section from its first byte. Returns their common end.
std::uint64_t tile(std::vector<TensorEntry>& tensors, std::string_view file_name) {
    std::ranges::sort(tensors, {}, [](const TensorEntry& t) { return std::tie(t.begin, t.end, t.name); });
    std::uint64_t end = 0;
    for (const TensorEntry& tensor : tensors) {
        if (tensor.begin != end) {
            refuse(file_name,
                   "tensor " + quoted(tensor.name) + (tensor.begin < end ? " overlaps another" : " leaves a hole"));
        }
        end = tensor.end;
    }
    return end;
}

void move_to_file_offsets(HeaderIndex& index) {
    for (TensorEntry& tensor : index.tensors) {
        tensor.begin += index.data_begin;
        tensor.end += index.data_begin;
    }
}

std::string_view header_text(std::span<const std::byte> head, std::uint64_t extent) {
    return {reinterpret_cast<const char*>(head.data()) + kLengthBytes, extent - kLengthBytes};
}

}  // namespace

std::uint64_t header_extent(std::span<const std::byte> first_bytes, std::uint64_t file_bytes,
                            std::string_view file_name) {
    if (file_bytes < kLengthBytes || first_bytes.size() < kLengthBytes) {
        refuse_truncated(file_name, file_bytes, kLengthBytes);
    }
    std::uint64_t length = 0;
    for (std::size_t i = kLengthBytes; i-- > 0;)
        length = (length << 8) | std::to_integer<std::uint64_t>(first_bytes[i]);
    if (length > kMaxHeaderBytes) {
        refuse(file_name, "its first 8 bytes ask for a header of " + std::to_string(length) + " bytes (limit " +
                              std::to_string(kMaxHeaderBytes) + ")");
    }
    if (kLengthBytes + length > file_bytes)
        refuse_truncated(file_name, file_bytes, kLengthBytes + length);
    return kLengthBytes + length;
}

HeaderIndex parse_header(std::span<const std::byte> head, std::uint64_t file_bytes, std::string_view file_name) {
    HeaderIndex index;
    index.data_begin = header_extent(head, file_bytes, file_name);
    if (head.size() < index.data_begin)
        refuse_truncated(file_name, head.size(), index.data_begin);
    const std::string_view text = header_text(head, index.data_begin);
    if (!is_valid_utf8(text))
        refuse(file_name, "its header is not UTF-8");
    try {
        JsonCursor json(text);
        index.tensors = read_tensors(json);
    } catch (const JsonError& error) {
        refuse(file_name, error.what());
    }
    const std::uint64_t data_bytes = tile(index.tensors, file_name);
    const auto needed = checked_add(index.data_begin, data_bytes);
    if (!needed)
        refuse(file_name, "its data offsets overflow");
    if (*needed > file_bytes)
        refuse_truncated(file_name, file_bytes, *needed);
    if (*needed < file_bytes)
        refuse(file_name, std::to_string(file_bytes - *needed) + " bytes follow the last tensor");
    move_to_file_offsets(index);
    return index;
}

}  // namespace serverless_triton::loader
