#include "json_cursor.h"

#include "checked.h"

namespace serverless_triton::loader {
namespace {

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

struct Utf8Form {
    int continuation_bytes;
    std::uint32_t first_bits;
    std::uint32_t smallest;  // anything below could have been written shorter
};

// Length and payload of a sequence by its first byte; continuation_bytes < 0 where no sequence may start so.
Utf8Form utf8_form(unsigned char first) {
    if (first < 0x80)
        return {0, first, 0};
    if ((first & 0xE0) == 0xC0)
        return {1, first & 0x1Fu, 0x80};
    if ((first & 0xF0) == 0xE0)
        return {2, first & 0x0Fu, 0x800};
    if ((first & 0xF8) == 0xF0)
        return {3, first & 0x07u, 0x10000};
    return {-1, 0, 0};
}

bool is_surrogate(std::uint32_t code_point) {
    return code_point >= 0xD800 && code_point <= 0xDFFF;
}

void append_utf8(std::string& out, std::uint32_t code_point) {
    const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code_point >> shift) & 0x3F)); };
    if (code_point < 0x80) {
        out += static_cast<char>(code_point);
    } else if (code_point < 0x800) {
        out += static_cast<char>(0xC0 | (code_point >> 6));
        tail(0);
    } else if (code_point < 0x10000) {
        out += static_cast<char>(0xE0 | (code_point >> 12));
        tail(6);
        tail(0);
    } else {
        out += static_cast<char>(0xF0 | (code_point >> 18));
        tail(12);
        tail(6);
        tail(0);
    }
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const Utf8Form form = utf8_form(static_cast<unsigned char>(text[i++]));
        if (form.continuation_bytes < 0)
            return false;
        std::uint32_t code_point = form.first_bits;
        for (int k = 0; k < form.continuation_bytes; ++k, ++i) {
            if (i >= text.size() || (static_cast<unsigned char>(text[i]) & 0xC0) != 0x80)
                return false;
            code_point = (code_point << 6) | (static_cast<unsigned char>(text[i]) & 0x3Fu);
        }
        if (code_point < form.smallest || code_point > 0x10FFFF || is_surrogate(code_point))
            return false;
    }
    return true;
}

void JsonCursor::fail(std::string_view reason) const {
    throw JsonError(std::string(reason) + " at byte " + std::to_string(position_) + " of the header");
}

void JsonCursor::skip_whitespace() {
    while (position_ < text_.size() && std::string_view(" \t\n\r").find(text_[position_]) != std::string_view::npos) {
        ++position_;
    }
}

char JsonCursor::peek() {
    skip_whitespace();
    return position_ < text_.size() ? text_[position_] : '\0';
}

char JsonCursor::next() {
    if (position_ >= text_.size())
        fail("the JSON ends early");
    return text_[position_++];
}

bool JsonCursor::consume(char wanted) {
    if (peek() != wanted || position_ >= text_.size())
        return false;
    ++position_;
    return true;
}

void JsonCursor::expect(char wanted) {
    if (!consume(wanted))
        fail(std::string("expected '") + wanted + "'");
}

void JsonCursor::expect_word(std::string_view word) {
    skip_whitespace();
    if (text_.substr(position_, word.size()) != word)
        fail("expected '" + std::string(word) + "'");
    position_ += word.size();
}

void JsonCursor::expect_end() {
    skip_whitespace();
    if (position_ != text_.size())
        fail("unexpected bytes after the JSON object");
}

bool JsonCursor::consume_null() {
    if (peek() != 'n')
        return false;
    expect_word("null");
    return true;
}

std::uint64_t JsonCursor::read_unsigned() {
    if (!is_digit(peek()))
        fail("expected a non-negative integer");
    if (text_[position_] == '0' && position_ + 1 < text_.size() && is_digit(text_[position_ + 1])) {
        fail("a number starts with a zero");
    }
    std::uint64_t value = 0;
    while (position_ < text_.size() && is_digit(text_[position_])) {
        const auto tenfold = checked_multiply(value, 10);
        const auto sum =
            tenfold ? checked_add(*tenfold, static_cast<std::uint64_t>(text_[position_] - '0')) : std::nullopt;
        if (!sum)
            fail("an integer does not fit 64 bits");
        value = *sum;
        ++position_;
    }
    if (position_ < text_.size() && std::string_view(".eE").find(text_[position_]) != std::string_view::npos) {
        fail("expected an integer, found a fraction");
    }
    return value;
}

std::uint32_t JsonCursor::read_hex4() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
        const char c = next();
        value <<= 4;
        if (is_digit(c))
            value |= static_cast<std::uint32_t>(c - '0');
        else if (c >= 'a' && c <= 'f')
            value |= static_cast<std::uint32_t>(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F')
            value |= static_cast<std::uint32_t>(c - 'A' + 10);
        else
            fail("bad \\u escape");
    }
    return value;
}

std::uint32_t JsonCursor::read_escaped_code_point() {
    const std::uint32_t high = read_hex4();
    if (!is_surrogate(high))
        return high;
    if (high >= 0xDC00 || next() != '\\' || next() != 'u')
        fail("a lone surrogate in a \\u escape");
    const std::uint32_t low = read_hex4();
    if (low < 0xDC00 || low > 0xDFFF)
        fail("a lone surrogate in a \\u escape");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

void JsonCursor::read_escape(std::string& out) {
    constexpr std::string_view kEscapes = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    const char c = next();
    if (c == 'u') {
        append_utf8(out, read_escaped_code_point());
        return;
    }
    const std::size_t at = kEscapes.find(c);
    if (at == std::string_view::npos)
        fail("unknown escape in a string");
    out += kMeanings[at];
}

std::string JsonCursor::read_string() {
    expect('"');
    std::string out;
    for (char c = next(); c != '"'; c = next()) {
        if (static_cast<unsigned char>(c) < 0x20)
            fail("a control character in a string");
        if (c == '\\')
            read_escape(out);
        else
            out += c;
    }
    return out;
}

void JsonCursor::skip_digits() {
    if (position_ >= text_.size() || !is_digit(text_[position_]))
        fail("expected a digit");
    while (position_ < text_.size() && is_digit(text_[position_]))
        ++position_;
}

void JsonCursor::skip_number() {
    const auto at = [&](std::string_view set) {
        return position_ < text_.size() && set.find(text_[position_]) != std::string_view::npos;
    };
    if (at("-"))
        ++position_;
    if (at("0"))
        ++position_;
    else
        skip_digits();
    if (at(".")) {
        ++position_;
        skip_digits();
    }
    if (at("eE")) {
        ++position_;
        if (at("+-"))
            ++position_;
        skip_digits();
    }
}

void JsonCursor::skip_value(int depth_left) {
    if (depth_left == 0)
        fail("the JSON is nested too deeply");
    switch (peek()) {
        case '{':
            return read_object([&](const std::string&) { skip_value(depth_left - 1); });
        case '[':
            return read_array([&] { skip_value(depth_left - 1); });
        case '"':
            return static_cast<void>(read_string());
        case 't':
            return expect_word("true");
        case 'f':
            return expect_word("false");
        case 'n':
            return expect_word("null");
        default:
            return skip_number();
    }
}

}  // namespace serverless_triton::loader
