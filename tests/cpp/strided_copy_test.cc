#include "strided_copy.h"

#include <limits>
#include <stdexcept>

#include "check.h"

using namespace serverless_triton::loader;

namespace {

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

std::span<const std::byte> bytes_of(const std::string& text) {
    return std::as_bytes(std::span(text));
}

std::string by_hand(const std::string& file, const StridedCopy& copy) {
    std::string kept;
    for (std::uint64_t row = 0; row < copy.rows; ++row)
        kept += file.substr(copy.begin + row * copy.row_bytes + copy.keep_begin, copy.keep_bytes);
    return kept;
}

void columns_arrive_whole_however_the_file_is_cut(StridedCopy copy, std::uint64_t step) {
    const std::string file = pattern(5'000);
    std::string target(copy.rows * copy.keep_bytes, '\0');
    copy.target = std::as_writable_bytes(std::span(target));
    check_copy(copy, file.size());
    for (std::uint64_t at = 0; at < file.size(); at += step)
        copy_columns(copy, at, bytes_of(file).subspan(at, std::min<std::uint64_t>(step, file.size() - at)));
    CHECK(target == by_hand(file, copy));
}

void the_ranges_hold_every_wanted_byte_and_leave_long_gaps_out() {
    const StridedCopy near{.begin = 100, .rows = 3, .row_bytes = 50, .keep_begin = 10, .keep_bytes = 20};
    const auto hull = ranges_of(near);
    CHECK(hull.size() == 1 && hull[0].begin == 110 && hull[0].end == 230);
    const StridedCopy far{.begin = 8, .rows = 2, .row_bytes = 3 * kChunkBytes, .keep_begin = 4, .keep_bytes = 5};
    const auto rows = ranges_of(far);
    CHECK(rows.size() == 2 && rows[0].begin == 12 && rows[0].end == 17);
    CHECK(rows[1].begin == 12 + 3 * kChunkBytes && rows[1].end == 17 + 3 * kChunkBytes);
    CHECK(ranges_of({.begin = 8, .rows = 0, .row_bytes = 4}).empty() && ranges_of({.rows = 9, .row_bytes = 4}).empty());
}

void copies_that_do_not_fit_are_refused() {
    std::vector<std::byte> memory(60);
    const StridedCopy good{
        .begin = 100, .rows = 3, .row_bytes = 50, .keep_begin = 10, .keep_bytes = 20, .target = memory};
    check_copy(good, 250);
    CHECK_THROWS(std::invalid_argument, check_copy(good, 249));
    const auto changed = [&](auto StridedCopy::* member, auto value) {
        StridedCopy copy = good;
        copy.*member = value;
        return copy;
    };
    for (const StridedCopy& copy :
         {changed(&StridedCopy::keep_begin, std::uint64_t{31}), changed(&StridedCopy::keep_begin, kMost),
          changed(&StridedCopy::begin, kMost), changed(&StridedCopy::rows, kMost),
          changed(&StridedCopy::row_bytes, kMost), changed(&StridedCopy::target, std::span(memory).first(59))}) {
        CHECK_THROWS(std::invalid_argument, check_copy(copy, 250));
    }
}

}  // namespace

int main() {
    for (const std::uint64_t step : {1, 7, 64, 999, 5'000}) {
        columns_arrive_whole_however_the_file_is_cut(
            {.begin = 100, .rows = 30, .row_bytes = 96, .keep_begin = 32, .keep_bytes = 32}, step);
        columns_arrive_whole_however_the_file_is_cut(
            {.begin = 0, .rows = 1, .row_bytes = 5'000, .keep_begin = 1'000, .keep_bytes = 3'000}, step);
        columns_arrive_whole_however_the_file_is_cut(
            {.begin = 4'990, .rows = 10, .row_bytes = 1, .keep_begin = 0, .keep_bytes = 1}, step);
        columns_arrive_whole_however_the_file_is_cut({.begin = 5'000, .rows = 0, .row_bytes = 0}, step);
    }
    the_ranges_hold_every_wanted_byte_and_leave_long_gaps_out();
    copies_that_do_not_fit_are_refused();
}
