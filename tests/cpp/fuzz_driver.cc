// Runs a fuzz target without libFuzzer: fuzz_driver CORPUS SECONDS feeds it every file of the folder CORPUS, then
// mutations of them until the time is over. Every run tries the same inputs, as many as it has time for; the one that
// the process dies of is printed.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
// A sanitizer that ends the process runs this and no atexit() handler; without one it isn't there.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

using Input = std::vector<std::uint8_t>;

constexpr std::size_t kMaxMutations = 6;
constexpr std::string_view kWords[] = {"{",
                                       "}",
                                       "[",
                                       "]",
                                       ":",
                                       ",",
                                       "\"",
                                       "\\u",
                                       "\\ud800",
                                       "-1",
                                       "1e99",
                                       "null",
                                       "F32",
                                       "F4",
                                       "\"U8\"",
                                       "0,0",
                                       "[[",
                                       "__metadata__",
                                       "\xC3",
                                       "\xFF",
                                       "18446744073709551615",
                                       "18446744073709551616",
                                       "4294967296"};

// What to print when a sanitizer or a failed CHECK ends the process.
const Input* current = nullptr;

void print_current() {
    if (current == nullptr)
        return;
    std::fprintf(stderr, "input:");
    for (const std::uint8_t byte : *current)
        std::fprintf(stderr, " %02x", byte);
    std::fprintf(stderr, "\n");
}

class Mutator {
  public:
    explicit Mutator(std::vector<Input> corpus) : corpus_(std::move(corpus)) {}

    Input next() {
        Input input = corpus_[below(corpus_.size())];
        for (std::size_t i = below(kMaxMutations) + 1; i > 0; --i)
            mutate(input);
        if (below(2) == 0)
            mend_length(input);
        return input;
    }

  private:
    std::size_t below(std::size_t limit) { return static_cast<std::size_t>(random_() % limit); }

    void mutate(Input& input) {
        const std::size_t at = below(input.size() + 1);
        const auto place = input.begin() + static_cast<std::ptrdiff_t>(at);
        const std::size_t length = below(std::min<std::size_t>(input.size() - at, 32) + 1);
        const auto end = place + static_cast<std::ptrdiff_t>(length);
        switch (below(5)) {
            case 0:
                if (at < input.size())
                    input[at] ^= static_cast<std::uint8_t>(1U << below(8));
                break;
            case 1:
                input.erase(place, end);
                break;
            case 2: {
                const Input piece(place, end);
                input.insert(place, piece.begin(), piece.end());
                break;
            }
            case 3: {
                const std::string_view word = kWords[below(std::size(kWords))];
                input.insert(place, word.begin(), word.end());
                break;
            }
            default: {
                const Input& other = corpus_[below(corpus_.size())];
                const std::size_t from = below(other.size() + 1);
                input.erase(place, input.end());
                input.insert(input.end(), other.begin() + static_cast<std::ptrdiff_t>(from), other.end());
            }
        }
    }

    // Most mutations move the end of the header; without a length that fits few would get past the first check.
    void mend_length(Input& input) {
        if (input.size() < 8)
            return;
        const auto last = std::find(input.rbegin(), input.rend() - 8, std::uint8_t{'}'});
        const auto length = static_cast<std::uint64_t>(input.rend() - 8 - last);
        for (std::size_t i = 0; i < 8; ++i)
            input[i] = static_cast<std::uint8_t>(length >> (8 * i));
    }

    const std::vector<Input> corpus_;
    std::mt19937_64 random_{20240125};
};

std::vector<Input> read_corpus(const char* folder) {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        paths.push_back(entry.path());
    std::ranges::sort(paths);
    std::vector<Input> corpus;
    for (const auto& path : paths) {
        std::ifstream file(path, std::ios::binary);
        corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return corpus;
}

void run(const Input& input) {
    current = &input;
    LLVMFuzzerTestOneInput(input.data(), input.size());
    current = nullptr;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) {
        std::fprintf(stderr, "usage: %s CORPUS SECONDS\n", arguments[0]);
        return 2;
    }
    std::atexit(print_current);
    if (__sanitizer_set_death_callback != nullptr)
        __sanitizer_set_death_callback(print_current);
    const std::vector<Input> corpus = read_corpus(arguments[1]);
    check_that(!corpus.empty(), "the corpus holds files", __FILE__, __LINE__);
    for (const Input& input : corpus)
        run(input);
    Mutator mutator(corpus);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atol(arguments[2]));
    long mutations = 0;
    for (; std::chrono::steady_clock::now() < end; ++mutations)
        run(mutator.next());
    std::printf("%zu files and %ld mutations of them\n", corpus.size(), mutations);
}
