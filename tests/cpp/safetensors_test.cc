#include "safetensors.h"

#include <random>

#include "check.h"
#include "errors.h"

using namespace serverless_triton::loader;

namespace {

std::string file_of(std::string_view header, std::size_t data_bytes) {
    std::string file;
    for (std::size_t i = 0; i < 8; ++i)
        file += static_cast<char>((header.size() >> (8 * i)) & 0xFF);
    return file.append(header).append(data_bytes, 'd');
}

HeaderIndex parse(std::string_view file) {
    return parse_header(std::as_bytes(std::span(file)), file.size(), "model.safetensors");
}

HeaderIndex parse(std::string_view header, std::size_t data_bytes) {
    return parse(file_of(header, data_bytes));
}

std::string tensor(std::string_view name, std::string_view dtype, std::string_view shape, std::string_view offsets) {
    return std::string("\"")
        .append(name)
        .append("\":{\"dtype\":\"")
        .append(dtype)
        .append("\",\"shape\":[")
        .append(shape)
        .append("],\"data_offsets\":[")
        .append(offsets)
        .append("]}");
}

std::string object(const std::string& members) {
    return "{" + members + "}";
}

void entries_are_in_file_order_with_file_offsets() {
    const std::string header = object(tensor("b", "F32", "2", "2,10") + "," + tensor("a", "U8", "2", "0,2"));
    const HeaderIndex index = parse(header, 10);
    CHECK(index.data_begin == 8 + header.size());
    CHECK(index.tensors.size() == 2);
    CHECK(index.tensors[0].name == "a" && index.tensors[0].begin == index.data_begin);
    CHECK(index.tensors[1].name == "b" && index.tensors[1].end == index.data_begin + 10);
    CHECK(index.tensors[1].shape == std::vector<std::uint64_t>{2});
}

void odd_but_valid_headers_are_accepted() {
    CHECK(parse("{}", 0).tensors.empty());
    CHECK(parse("  {}  \n", 0).tensors.empty());
    CHECK(parse(R"({"__metadata__":{"format":"pt"}})", 0).tensors.empty());
    CHECK(parse(R"({"__metadata__":null})", 0).tensors.empty());
    CHECK(parse(R"({"a":{"extra":[{"x":1.5}],"dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1).tensors.size() == 1);
    CHECK(parse(object(tensor("a", "F4", "2,3", "0,3")), 3).tensors.size() == 1);
    CHECK(parse(object(tensor("a", "F32", "0,1099511627776,1099511627776", "0,0")), 0).tensors.size() == 1);
}

struct WrongSize {
    const char* dtype;
    const char* shape;
    const char* offsets;
    std::size_t data_bytes;
};

constexpr WrongSize kWrongSizes[] = {
    {"F32", "2", "0,4", 4},
    {"F32", "2", "0,12", 12},
    {"F99", "1", "0,1", 1},
    {"f32", "1", "0,4", 4},
    {"U8", "4", "4,0", 4},
    {"F4", "3", "0,1", 1},
    {"F32", "4611686018427387904", "0,0", 0},
    {"U8", "1099511627776,1099511627776", "0,0", 0},
    {"U8", "1099511627776,1099511627776,0", "0,0", 0},
    {"F64", "2305843009213693952", "0,0", 0},
    {"U8", "-1", "0,1", 1},
    {"U8", "1.0", "0,1", 1},
    {"U8", "1", "0", 1},
    {"U8", "1", "0,1,2", 1},
    {"U8", "18446744073709551615", "0,18446744073709551615", 1},
};

void wrong_sizes_are_refused() {
    for (const WrongSize& wrong : kWrongSizes) {
        const std::string header = object(tensor("a", wrong.dtype, wrong.shape, wrong.offsets));
        CHECK_THROWS(NotSafetensors, parse(header, wrong.data_bytes));
    }
}

void tensors_must_tile_the_data() {
    const std::string first = tensor("a", "U8", "4", "0,4");
    CHECK_THROWS(NotSafetensors, parse(object(first + "," + tensor("b", "U8", "4", "2,6")), 6));
    CHECK_THROWS(NotSafetensors, parse(object(first + "," + tensor("b", "U8", "4", "0,4")), 4));
    CHECK_THROWS(NotSafetensors, parse(object(first + "," + tensor("b", "U8", "4", "5,9")), 9));
    CHECK_THROWS(NotSafetensors, parse(object(tensor("a", "U8", "4", "1,5")), 5));
    CHECK_THROWS(NotSafetensors, parse(object(first), 5));
    CHECK_THROWS(CheckpointTruncated, parse(object(first), 3));
}

void ambiguous_or_foreign_headers_are_refused() {
    const std::string first = tensor("a", "U8", "1", "0,1");
    for (const std::string& header : {object(first + "," + first), object(R"("__metadata__":{},"__metadata__":{})"),
                                      object(R"("__metadata__":{"a":1})"),
                                      object(R"("a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]})"),
                                      object(R"("a":{"dtype":"U8","shape":[1]})"), object(R"("a":["U8",[1],[0,1]])"),
                                      std::string("[]"), std::string(""), std::string("{} {}"), std::string("{"),
                                      object("\"\xFF\":1"), object(R"("a":{"x":)" + std::string(100'000, '[') + "}")}) {
        CHECK_THROWS(NotSafetensors, parse(header, 1));
    }
}

void header_lengths_are_bounded() {
    CHECK_THROWS(NotSafetensors, parse(std::string(8, '\xFF')));
    CHECK_THROWS(NotSafetensors, parse(std::string("\x01\xE1\xF5\x05\0\0\0\0{}", 10)));
    CHECK_THROWS(CheckpointTruncated, parse(std::string("\x03\0\0\0\0\0\0\0{}", 10)));
    CHECK_THROWS(CheckpointTruncated, parse(std::string("\0\0\0", 3)));
    CHECK_THROWS(CheckpointTruncated, parse(std::string()));
}

void every_truncation_is_noticed() {
    const std::string file = file_of(object(tensor("a", "F32", "2", "0,8") + "," + tensor("b", "U8", "3", "8,11")), 11);
    for (std::size_t bytes = 0; bytes < file.size(); ++bytes)
        CHECK_THROWS(CheckpointTruncated, parse(file.substr(0, bytes)));
}

// Whatever the bytes, the result is an index inside the file or one of the two errors; the sanitizers watch the rest.
void corrupted_headers_never_escape_the_file() {
    std::mt19937 random(20260101);  // NOLINT: a fixed seed is the point
    const std::string good = file_of(object(tensor("a", "F32", "2", "0,8") + "," + tensor("b", "U8", "3", "8,11")), 11);
    for (int round = 0; round < 20'000; ++round) {
        std::string file = good;
        for (int change = 0; change < 1 + round % 4; ++change)
            file[random() % file.size()] = static_cast<char>(random());
        try {
            for (const TensorEntry& entry : parse(file).tensors)
                CHECK(entry.begin <= entry.end && entry.end <= file.size());
        } catch (const LoaderError&) {
        }
    }
}

}  // namespace

int main() {
    entries_are_in_file_order_with_file_offsets();
    odd_but_valid_headers_are_accepted();
    wrong_sizes_are_refused();
    tensors_must_tile_the_data();
    ambiguous_or_foreign_headers_are_refused();
    header_lengths_are_bounded();
    every_truncation_is_noticed();
    corrupted_headers_never_escape_the_file();
}
