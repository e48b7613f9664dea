// The smallest test harness that does: CHECK a condition, CHECK_THROWS an error type, stop at the first failure.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <string>
#include <string_view>

#define CHECK(condition) check_that((condition), #condition, __FILE__, __LINE__)

#define CHECK_THROWS(Error, expression)                                        \
    do {                                                                       \
        bool thrown = false;                                                   \
        try {                                                                  \
            static_cast<void>(expression);                                     \
        } catch (const Error&) {                                               \
            thrown = true;                                                     \
        }                                                                      \
        check_that(thrown, #expression " throws " #Error, __FILE__, __LINE__); \
    } while (false)

inline void check_that(bool holds, const char* what, const char* file, int line) {
    if (holds)
        return;
    std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
    std::exit(1);
}

// A file in a fresh directory of its own, removed at the end of the scope.
class TemporaryFile {
  public:
    explicit TemporaryFile(std::string_view content) {
        const char* base = std::getenv("TMPDIR");
        directory_ = std::string(base != nullptr ? base : "/tmp") + "/loader-test-XXXXXX";
        check_that(::mkdtemp(directory_.data()) != nullptr, "mkdtemp", __FILE__, __LINE__);
        path_ = directory_ + "/model.safetensors";
        write(content);
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    ~TemporaryFile() {
        std::remove(path_.c_str());
        std::remove(directory_.c_str());
    }

    void write(std::string_view content) const {
        std::ofstream out(path_, std::ios::binary | std::ios::trunc);
        out.write(content.data(), static_cast<std::streamsize>(content.size()));
    }
    [[nodiscard]] const std::string& path() const { return path_; }

  private:
    std::string directory_;
    std::string path_;
};

// `bytes` bytes that differ from their neighbours and from one 4 KB block to the next.
inline std::string pattern(std::size_t bytes) {
    std::string out(bytes, '\0');
    for (std::size_t i = 0; i < bytes; ++i)
        out[i] = static_cast<char>((i * 31 + i / 4096) % 251);
    return out;
}
