// Runs a fuzz target without libFuzzer: fuzz_driver CORPUS SECONDS feeds it every file of the folder CORPUS, then
// mutations of them until the time is over. An input with an outcome that none had before is mutated like the corpus
// from then on, and written to the folder FUZZ_FINDS of the environment, if there is one.
//
// Each run tries other inputs, and prints its seed; FUZZ_SEED in the environment makes it try the same again. The
// input that the process dies of is printed.
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
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
// What became of the last input, in a few hundred different words at most.
extern "C" const char* fuzz_outcome();
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
    Mutator(std::vector<Input> corpus, std::uint64_t seed) : corpus_(std::move(corpus)), random_(seed) {}

    void add(Input input) { corpus_.push_back(std::move(input)); }

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

    std::vector<Input> corpus_;
    std::mt19937_64 random_;
};

std::uint64_t choose_seed() {
    if (const char* const given = std::getenv("FUZZ_SEED"))
        return std::strtoull(given, nullptr, 10);
    return static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
}

void keep(const Input& input, std::size_t number, std::uint64_t seed) {
    const char* const folder = std::getenv("FUZZ_FINDS");
    if (folder == nullptr)
        return;
    std::filesystem::create_directories(folder);
    const auto name = "find-" + std::to_string(seed) + "-" + std::to_string(number);
    std::ofstream file(std::filesystem::path(folder) / name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
    check_that(file.good(), "a find is written", __FILE__, __LINE__);
}

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

std::string outcome_of(const Input& input) {
    current = &input;
    LLVMFuzzerTestOneInput(input.data(), input.size());
    current = nullptr;
    return fuzz_outcome();
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
    const std::uint64_t seed = choose_seed();
    std::printf("seed %s\n", std::to_string(seed).c_str());
    std::fflush(stdout);
    std::set<std::string> outcomes;
    for (const Input& input : corpus)
        outcomes.insert(outcome_of(input));
    Mutator mutator(corpus, seed);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atol(arguments[2]));
    std::size_t finds = 0;
    long mutations = 0;
    for (; std::chrono::steady_clock::now() < end; ++mutations) {
        Input input = mutator.next();
        if (!outcomes.insert(outcome_of(input)).second)
            continue;
        keep(input, ++finds, seed);
        mutator.add(std::move(input));
    }
    std::printf("%zu files, %ld mutations, %zu finds\n", corpus.size(), mutations, finds);
}
