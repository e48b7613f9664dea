// A strict reader of the JSON that a safetensors header may contain (RFC 8259, valid UTF-8 only).
// It pulls values one by one and builds no tree, so a hostile header cannot make it allocate more than its own size.
// A cursor belongs to one thread. Every method throws JsonError at the first byte that does not fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace serverless_triton::loader {

struct JsonError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Nesting of values that are skipped; the same limit as the official reader's parser (serde_json).
inline constexpr int kMaxJsonDepth = 128;

[[nodiscard]] bool is_valid_utf8(std::string_view text);

class JsonCursor {
  public:
    // `text` must outlive the cursor and be valid UTF-8.
    explicit JsonCursor(std::string_view text) : text_(text) {}

    [[nodiscard]] std::string read_string();
    [[nodiscard]] std::uint64_t read_unsigned();
    [[nodiscard]] bool consume_null();
    void skip_value() { skip_value(kMaxJsonDepth); }
    void expect_end();

    // Calls on_member(key) with the cursor standing at the member's value, which on_member must read.
    template <typename OnMember>
    void read_object(OnMember on_member) {
        expect('{');
        if (consume('}'))
            return;
        do {
            const std::string key = read_string();
            expect(':');
            on_member(key);
        } while (consume(','));
        expect('}');
    }

    // Calls on_item() with the cursor standing at each item, which on_item must read.
    template <typename OnItem>
    void read_array(OnItem on_item) {
        expect('[');
        if (consume(']'))
            return;
        do {
            on_item();
        } while (consume(','));
        expect(']');
    }

    [[noreturn]] void fail(std::string_view reason) const;

  private:
    [[nodiscard]] char peek();
    [[nodiscard]] bool consume(char wanted);
    void expect(char wanted);
    void expect_word(std::string_view word);
    void skip_whitespace();
    void skip_value(int depth_left);
    void skip_number();
    void skip_digits();
    [[nodiscard]] char next();
    [[nodiscard]] std::uint32_t read_hex4();
    [[nodiscard]] std::uint32_t read_escaped_code_point();
    void read_escape(std::string& out);

    std::string_view text_;
    std::size_t position_ = 0;
};

}  // namespace serverless_triton::loader
