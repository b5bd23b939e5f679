// One row of a stored matrix times a few rows of x: what `few_rows.cpp` and the text of a step are made of.
//
// A row of w is read once, from its start to its end, and asked for ahead of its use; its products with
// all rows of x are summed in float32.
// A matrix is stored as f32, as bf16, or as codes with a scale for each group of 32 along k: of 8 bits,
// w = scale code, or of 4 bits with an offset, w = scale (code - 8) + offset, two to a byte, the first low.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t GROUP = 32;       // weights that share a scale
constexpr int64_t ROWS = 4;         // rows of x that one pass over w serves
constexpr int64_t AHEAD = 4096;     // bytes from a use to what is asked for

#define INLINE inline __attribute__((always_inline))

// Floats: L of them in a register, and how stored weights become such.
#if defined(__AVX512F__)
constexpr int64_t L = 16;
using Floats = __m512;
INLINE Floats zeros() { return _mm512_setzero_ps(); }
INLINE Floats all(float a) { return _mm512_set1_ps(a); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float sum(Floats a) { return _mm512_reduce_add_ps(a); }
INLINE Floats read(const float* p) { return _mm512_loadu_ps(p); }
INLINE Floats read(const uint16_t* p) {
  auto bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
INLINE Floats read(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
INLINE void read_nibbles(const uint8_t* p, Floats& low, Floats& high) {
  auto bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  low = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
  high = _mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4));
}
#elif defined(__AVX2__)
constexpr int64_t L = 8;
using Floats = __m256;
INLINE Floats zeros() { return _mm256_setzero_ps(); }
INLINE Floats all(float a) { return _mm256_set1_ps(a); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE float sum(Floats a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
INLINE Floats read(const float* p) { return _mm256_loadu_ps(p); }
INLINE Floats read(const uint16_t* p) {
  auto bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
INLINE Floats read(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
INLINE void read_nibbles(const uint8_t* p, Floats& low, Floats& high) {
  auto bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  low = _mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)));
  high = _mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4));
}
#else
constexpr int64_t L = 8;
struct Floats {
  float at[L];
};
INLINE Floats all(float a) {
  Floats r;
  for (auto& e : r.at) e = a;
  return r;
}
INLINE Floats zeros() { return all(0); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  for (int64_t i = 0; i < L; i++) c.at[i] += a.at[i] * b.at[i];
  return c;
}
INLINE float sum(Floats a) {
  float s = 0;
  for (float e : a.at) s += e;
  return s;
}
INLINE float widened(float a) { return a; }
INLINE float widened(int8_t a) { return a; }
INLINE float widened(uint16_t a) {
  uint32_t bits = uint32_t(a) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
template <class T>
INLINE Floats read(const T* p) {
  Floats r;
  for (int64_t i = 0; i < L; i++) r.at[i] = widened(p[i]);
  return r;
}
INLINE void read_nibbles(const uint8_t* p, Floats& low, Floats& high) {
  for (int64_t i = 0; i < L; i++) low.at[i] = p[i] & 15, high.at[i] = p[i] >> 4;
}
#endif

INLINE float wide(float a) { return a; }
INLINE float wide(uint16_t a) {
  uint32_t bits = uint32_t(a) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
INLINE void store(float a, float* p) { *p = a; }
INLINE void store(float a, uint16_t* p) {  // bf16, halves to even
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  *p = a != a ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// One row of w times M rows of x.
template <class T>
struct Plain {
  const T* w;
  int64_t k;
  static constexpr int64_t bytes = sizeof(T);

  template <int M>
  INLINE void row(int64_t n, const float* x, float* y) const {
    const T* p = w + n * k;
    Floats even[M], odd[M];
    for (int m = 0; m < M; m++) even[m] = odd[m] = zeros();
    int64_t i = 0;
#pragma GCC unroll 2
    for (; i + 2 * L <= k; i += 2 * L) {
      if (bytes < 4)  // the processor itself keeps ahead of whole floats, and is disturbed
        __builtin_prefetch(reinterpret_cast<const char*>(p + i) + AHEAD);
      Floats a = read(p + i), b = read(p + i + L);
      for (int m = 0; m < M; m++) {
        even[m] = multiply_add(a, read(x + m * k + i), even[m]);
        odd[m] = multiply_add(b, read(x + m * k + i + L), odd[m]);
      }
    }
    for (int m = 0; m < M; m++) {
      float rest = 0;
      for (int64_t j = i; j < k; j++) rest += wide(p[j]) * x[m * k + j];
      y[m] = sum(even[m]) + sum(odd[m]) + rest;
    }
  }
};

template <class S>
struct Bytes {
  const int8_t* codes;
  const S* scales;
  int64_t k;

  template <int M>
  INLINE void row(int64_t n, const float* x, float* y) const {
    const int8_t* p = codes + n * k;
    const S* s = scales + n * (k / GROUP);
    Floats total[M];
    for (int m = 0; m < M; m++) total[m] = zeros();
    for (int64_t i = 0; i < k; i += GROUP) {
      __builtin_prefetch(p + i + AHEAD);
      Floats part[M], factor = all(wide(s[i / GROUP]));
      for (int m = 0; m < M; m++) part[m] = zeros();
#pragma GCC unroll 4
      for (int64_t j = 0; j < GROUP; j += L) {
        Floats a = read(p + i + j);
        for (int m = 0; m < M; m++) part[m] = multiply_add(a, read(x + m * k + i + j), part[m]);
      }
      for (int m = 0; m < M; m++) total[m] = multiply_add(part[m], factor, total[m]);
    }
    for (int m = 0; m < M; m++) y[m] = sum(total[m]);
  }
};

template <class S>
struct Nibbles {
  const uint8_t* codes;
  const S* scales;
  const S* offsets;
  const float* sums;  // of x by group: what is the same for all its codes multiplies that
  int64_t k;

  template <int M>
  INLINE void row(int64_t n, const float* x, float* y) const {
    const int64_t groups = k / GROUP;
    const uint8_t* p = codes + n * (k / 2);
    const S *s = scales + n * groups, *o = offsets + n * groups;
    Floats total[M];
    float shift[M] = {};
    for (int m = 0; m < M; m++) total[m] = zeros();
    for (int64_t g = 0; g < groups; g++) {
      __builtin_prefetch(p + g * (GROUP / 2) + AHEAD);
      const float f = wide(s[g]), offset = wide(o[g]) - 8 * f;
      Floats part[M], factor = all(f);
      for (int m = 0; m < M; m++) part[m] = zeros();
#pragma GCC unroll 2
      for (int64_t j = 0; j < GROUP / 2; j += L) {
        Floats low, high;
        read_nibbles(p + g * (GROUP / 2) + j, low, high);
        for (int m = 0; m < M; m++) {
          const float* at = x + m * k + g * GROUP + j;
          part[m] = multiply_add(low, read(at), part[m]);
          part[m] = multiply_add(high, read(at + GROUP / 2), part[m]);
        }
      }
      for (int m = 0; m < M; m++) {
        total[m] = multiply_add(part[m], factor, total[m]);
        shift[m] += offset * sums[m * groups + g];
      }
    }
    for (int m = 0; m < M; m++) y[m] = sum(total[m]) + shift[m];
  }
};

}  // namespace
