#include "json_cursor.h"

#include "check.h"

using serverless_triton::loader::is_valid_utf8;
using serverless_triton::loader::JsonCursor;
using serverless_triton::loader::JsonError;

namespace {

std::string string_in(std::string_view json) {
    return JsonCursor(json).read_string();
}
std::uint64_t integer_in(std::string_view json) {
    return JsonCursor(json).read_unsigned();
}

bool skips(std::string_view json) {
    try {
        JsonCursor cursor(json);
        cursor.skip_value();
        cursor.expect_end();
        return true;
    } catch (const JsonError&) {
        return false;
    }
}

std::string nested(std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
}

void strings_are_unescaped() {
    CHECK(string_in(R"("a\"\\\/\b\f\n\r\t")") == "a\"\\/\b\f\n\r\t");
    CHECK(string_in(R"("\u00e9\u20AC")") == "\xC3\xA9\xE2\x82\xAC");
    CHECK(string_in(R"("\ud83d\ude00")") == "\xF0\x9F\x98\x80");
}

void bad_strings_are_refused() {
    for (const char* json : {"\"", "\"a", "\"\\", "\"\\x\"", "\"\\u12\"", "\"\\u12G4\"", "\"\\ud83d\"", "\"\\ud83dx\"",
                             "\"\\ud83d\\u0041\"", "\"\\ude00\"", "\"\n\"", "a", ""}) {
        CHECK_THROWS(JsonError, string_in(json));
    }
}

void integers_are_exact_and_bounded() {
    CHECK(integer_in(" 0") == 0);
    CHECK(integer_in("18446744073709551615") == UINT64_MAX);
    for (const char* json : {"18446744073709551616", "99999999999999999999999", "-1", "01", "1.0", "1e3", "", "x"}) {
        CHECK_THROWS(JsonError, integer_in(json));
    }
}

void any_value_can_be_skipped() {
    for (const char* json : {"null", "true", "false", "-0.5e+10", "[1, [], {}]", R"({"a": {"b": [null, "c"]}})"}) {
        CHECK(skips(json));
    }
    for (const char* json :
         {"", "nul", "tru", "[1,]", "[1 2]", "{\"a\"}", "{\"a\":}", "{a:1}", "1.", "-", "1e", "[", "{", "00"}) {
        CHECK(!skips(json));
    }
}

void deep_nesting_is_refused() {
    CHECK(skips(nested(serverless_triton::loader::kMaxJsonDepth)));
    CHECK(!skips(nested(serverless_triton::loader::kMaxJsonDepth + 1)));
    CHECK(!skips(std::string(1'000'000, '[')));
}

void utf8_is_validated() {
    CHECK(is_valid_utf8("plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"));
    for (const char* text : {"\x80", "\xC3", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                             "\xF8\x88\x80\x80\x80", "\xE2\x82", "\xC3\x41"}) {
        CHECK(!is_valid_utf8(text));
    }
}

}  // namespace

int main() {
    strings_are_unescaped();
    bad_strings_are_refused();
    integers_are_exact_and_bounded();
    any_value_can_be_skipped();
    deep_nesting_is_refused();
    utf8_is_validated();
}
