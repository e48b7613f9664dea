#include "xxh3.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Names follow the specification, so that the two can be read side by side.
namespace serverless_triton::loader {
namespace {

using u32 = std::uint32_t;
using u64 = std::uint64_t;
__extension__ using u128 = unsigned __int128;
using Bytes = const std::byte*;

static_assert(std::endian::native == std::endian::little, "the specification reads little-endian words");

constexpr u64 kPrime32_1 = 0x9E3779B1;
constexpr u64 kPrime32_2 = 0x85EBCA77;
constexpr u64 kPrime32_3 = 0xC2B2AE3D;
constexpr u64 kPrime64_1 = 0x9E3779B185EBCA87;
constexpr u64 kPrime64_2 = 0xC2B2AE3D27D4EB4F;
constexpr u64 kPrime64_3 = 0x165667B19E3779F9;
constexpr u64 kPrime64_4 = 0x85EBCA77C2B2AE63;
constexpr u64 kPrime64_5 = 0x27D4EB2F165667C5;
constexpr u64 kPrimeMx1 = 0x165667919E3779F9;
constexpr u64 kPrimeMx2 = 0x9FB21C651E98DF25;

alignas(64) constexpr unsigned char kSecret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
    0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
    0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
    0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

constexpr std::string_view kHexDigits = "0123456789abcdef";
constexpr std::size_t kStripeBytes = 64;
constexpr std::size_t kSecretStep = 8;  // how far the secret moves from stripe to stripe
constexpr std::size_t kStripesPerBlock = (sizeof kSecret - kStripeBytes) / kSecretStep;
constexpr std::size_t kBlockBytes = kStripeBytes * kStripesPerBlock;
constexpr std::size_t kScrambleSecret = sizeof kSecret - kStripeBytes;

template <typename Word>
Word read(const void* at) {
    Word word;
    std::memcpy(&word, at, sizeof word);
    return word;
}

u64 secret64(std::size_t offset) {
    return read<u64>(kSecret + offset);
}

u32 secret32(std::size_t offset) {
    return read<u32>(kSecret + offset);
}

u64 fold(u64 left, u64 right) {
    const u128 product = u128{left} * right;
    return static_cast<u64>(product) ^ static_cast<u64>(product >> 64);
}

u64 xor_shift(u64 value, unsigned bits) {
    return value ^ (value >> bits);
}

u64 avalanche(u64 hash) {
    return xor_shift(xor_shift(hash, 37) * kPrimeMx1, 32);
}

u64 avalanche_xxh64(u64 hash) {
    return xor_shift(xor_shift(xor_shift(hash, 33) * kPrime64_2, 29) * kPrime64_3, 32);
}

Digest hash_0() {
    return {avalanche_xxh64(secret64(80) ^ secret64(88)), avalanche_xxh64(secret64(64) ^ secret64(72))};
}

Digest hash_1_to_3(Bytes input, std::size_t length) {
    const auto byte_at = [input](std::size_t i) { return std::to_integer<u32>(input[i]); };
    const u32 low = byte_at(0) << 16 | byte_at(length / 2) << 24 | byte_at(length - 1) | static_cast<u32>(length) << 8;
    const u32 high = std::rotl(__builtin_bswap32(low), 13);
    return {avalanche_xxh64(high ^ u64{secret32(8) ^ secret32(12)}),
            avalanche_xxh64(low ^ u64{secret32(0) ^ secret32(4)})};
}

Digest hash_4_to_8(Bytes input, std::size_t length) {
    const u64 value = read<u32>(input) | u64{read<u32>(input + length - 4)} << 32;
    const u128 product = u128{value ^ secret64(16) ^ secret64(24)} * (kPrime64_1 + (length << 2));
    u64 low = static_cast<u64>(product);
    const u64 high = static_cast<u64>(product >> 64) + (low << 1);
    low ^= high >> 3;
    return {avalanche(high), xor_shift(xor_shift(low, 35) * kPrimeMx2, 28)};
}

Digest hash_9_to_16(Bytes input, std::size_t length) {
    const u64 first = read<u64>(input);
    u64 last = read<u64>(input + length - 8);
    const u128 product = u128{first ^ last ^ secret64(32) ^ secret64(40)} * kPrime64_1;
    u64 low = static_cast<u64>(product) + (u64{length - 1} << 54);
    last ^= secret64(48) ^ secret64(56);
    const u64 high = static_cast<u64>(product >> 64) + last + u64{static_cast<u32>(last)} * (kPrime32_2 - 1);
    low ^= __builtin_bswap64(high);
    const u128 mixed = u128{low} * kPrime64_2;
    return {avalanche(static_cast<u64>(mixed >> 64) + high * kPrime64_2), avalanche(static_cast<u64>(mixed))};
}

u64 mix_16(Bytes input, std::size_t secret) {
    return fold(read<u64>(input) ^ secret64(secret), read<u64>(input + 8) ^ secret64(secret + 8));
}

void mix_32(Digest& state, Bytes first, Bytes second, std::size_t secret) {
    state.low += mix_16(first, secret);
    state.low ^= read<u64>(second) + read<u64>(second + 8);
    state.high += mix_16(second, secret + 16);
    state.high ^= read<u64>(first) + read<u64>(first + 8);
}

Digest finish_middle(const Digest& state, std::size_t length) {
    const u64 high = state.low * kPrime64_1 + state.high * kPrime64_4 + length * kPrime64_2;
    return {0 - avalanche(high), avalanche(state.low + state.high)};
}

Digest hash_17_to_128(Bytes input, std::size_t length) {
    Digest state{0, length * kPrime64_1};
    for (std::size_t i = (length - 1) / 32 + 1; i-- > 0;)
        mix_32(state, input + 16 * i, input + length - 16 * (i + 1), 32 * i);
    return finish_middle(state, length);
}

Digest hash_129_to_240(Bytes input, std::size_t length) {
    Digest state{0, length * kPrime64_1};
    for (std::size_t i = 0; i < 128; i += 32)
        mix_32(state, input + i, input + i + 16, i);
    state = {avalanche(state.high), avalanche(state.low)};
    for (std::size_t i = 128; i + 32 <= length; i += 32)
        mix_32(state, input + i, input + i + 16, i - 128 + 3);
    mix_32(state, input + length - 16, input + length - 32, 103);
    return finish_middle(state, length);
}

using Lanes = std::array<u64, 8>;

// Takes in consecutive stripes; there is one for each instruction set.
using Accumulate = void (*)(Lanes& lanes, Bytes input, std::size_t stripes, const unsigned char* secret);

void accumulate_portably(Lanes& lanes, Bytes input, std::size_t stripes, const unsigned char* secret) {
    for (; stripes > 0; --stripes, input += kStripeBytes, secret += kSecretStep) {
        for (std::size_t i = 0; i < lanes.size(); ++i) {
            const u64 value = read<u64>(input + 8 * i);
            const u64 key = value ^ read<u64>(secret + 8 * i);
            lanes[i ^ 1] += value;
            lanes[i] += u64{static_cast<u32>(key)} * (key >> 32);
        }
    }
}

void scramble(Lanes& lanes) {
    for (std::size_t i = 0; i < lanes.size(); ++i)
        lanes[i] = (xor_shift(lanes[i], 47) ^ secret64(kScrambleSecret + 8 * i)) * kPrime32_1;
}

#if defined(__x86_64__)
// Two pages ahead: the processor's own prefetching ends with each 4 KB.
constexpr std::size_t kPrefetchBytes = 8192;

__attribute__((target("avx2"))) __m256i absorb_avx2(__m256i lanes, Bytes input, const unsigned char* secret) {
    const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(input));
    const __m256i key = _mm256_xor_si256(value, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(secret)));
    const __m256i product = _mm256_mul_epu32(key, _mm256_srli_epi64(key, 32));
    const __m256i swapped = _mm256_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2));
    return _mm256_add_epi64(product, _mm256_add_epi64(lanes, swapped));
}

__attribute__((target("avx2"))) void accumulate_avx2(Lanes& lanes, Bytes input, std::size_t stripes,
                                                     const unsigned char* secret) {
    auto* const state = reinterpret_cast<__m256i*>(lanes.data());
    __m256i low = _mm256_loadu_si256(state);
    __m256i high = _mm256_loadu_si256(state + 1);
    for (; stripes > 0; --stripes, input += kStripeBytes, secret += kSecretStep) {
        _mm_prefetch(reinterpret_cast<const char*>(input) + kPrefetchBytes, _MM_HINT_T0);
        low = absorb_avx2(low, input, secret);
        high = absorb_avx2(high, input + 32, secret + 32);
    }
    _mm256_storeu_si256(state, low);
    _mm256_storeu_si256(state + 1, high);
}

Accumulate best_accumulate() {
    return __builtin_cpu_supports("avx2") ? &accumulate_avx2 : &accumulate_portably;
}
#else
Accumulate best_accumulate() {
    return &accumulate_portably;
}
#endif

u64 merge(const Lanes& lanes, std::size_t secret, u64 hash) {
    for (std::size_t i = 0; i < 8; i += 2)
        hash += fold(lanes[i] ^ secret64(secret + 8 * i), lanes[i + 1] ^ secret64(secret + 8 * i + 8));
    return avalanche(hash);
}

Digest hash_long(Bytes input, std::size_t length, Accumulate accumulate) {
    Lanes lanes{kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3, kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
    const std::size_t blocks = (length - 1) / kBlockBytes;
    for (std::size_t i = 0; i < blocks; ++i) {
        accumulate(lanes, input + i * kBlockBytes, kStripesPerBlock, kSecret);
        scramble(lanes);
    }
    const std::size_t rest = length - 1 - blocks * kBlockBytes;
    accumulate(lanes, input + blocks * kBlockBytes, rest / kStripeBytes, kSecret);
    accumulate(lanes, input + length - kStripeBytes, 1, kSecret + kScrambleSecret - 7);
    return {merge(lanes, kScrambleSecret - 11, ~(length * kPrime64_2)), merge(lanes, 11, length * kPrime64_1)};
}

}  // namespace

Digest xxh3_128(std::span<const std::byte> bytes, Instructions instructions) {
    static const Accumulate best = best_accumulate();
    const Bytes input = bytes.data();
    const std::size_t length = bytes.size();
    if (length > 240)
        return hash_long(input, length, instructions == Instructions::kBest ? best : &accumulate_portably);
    if (length > 128)
        return hash_129_to_240(input, length);
    if (length > 16)
        return hash_17_to_128(input, length);
    if (length > 8)
        return hash_9_to_16(input, length);
    if (length > 3)
        return hash_4_to_8(input, length);
    return length > 0 ? hash_1_to_3(input, length) : hash_0();
}

std::string to_hex(const Digest& digest) {
    std::string text;
    for (const u64 word : {digest.high, digest.low}) {
        for (unsigned shift = 64; shift > 0; shift -= 4)
            text += kHexDigits[(word >> (shift - 4)) & 0xF];
    }
    return text;
}

std::optional<Digest> from_hex(std::string_view text) {
    if (text.size() != 32)
        return std::nullopt;
    u128 value = 0;
    for (const char digit : text) {
        const std::size_t at = kHexDigits.find(digit);
        if (at == std::string_view::npos)
            return std::nullopt;
        value = value << 4 | at;
    }
    return Digest{static_cast<u64>(value >> 64), static_cast<u64>(value)};
}

}  // namespace serverless_triton::loader
