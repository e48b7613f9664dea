#include "throttle.h"

#include "check.h"

using serverless_triton::loader::Throttle;
using namespace std::chrono_literals;

namespace {

const Throttle::Clock::time_point kStart{1h};

void unlimited_transfers_are_complete_at_once() {
    Throttle throttle(0);
    CHECK(!throttle.is_limited());
    CHECK(throttle.reserve(1'000'000, kStart) == kStart);
}

void transfers_queue_behind_each_other() {
    Throttle throttle(1000);
    CHECK(throttle.reserve(500, kStart) == kStart + 500ms);
    CHECK(throttle.reserve(1000, kStart) == kStart + 1500ms);
}

void long_transfers_are_booked_in_short_slices() {
    CHECK(Throttle(0).slice_of(1'000'000) == 1'000'000);
    CHECK(Throttle(1000).slice_of(1'000'000) == 20);
    CHECK(Throttle(1000).slice_of(7) == 7);
    CHECK(Throttle(1).slice_of(7) == 1);
}

void idle_time_is_not_saved_up() {
    Throttle throttle(1000);
    CHECK(throttle.reserve(100, kStart) == kStart + 100ms);
    CHECK(throttle.reserve(1000, kStart + 10s) == kStart + 11s);
}

}  // namespace

int main() {
    long_transfers_are_booked_in_short_slices();
    unlimited_transfers_are_complete_at_once();
    transfers_queue_behind_each_other();
    idle_time_is_not_saved_up();
}
