// Products of a few rows with a matrix, y[m, n] = sum over k of x[m, k] w[n, k], as fast as memory gives w.
//
// A row of w is read once, from its start to its end, and asked for ahead of its use; its products with
// all rows of x are summed in float32. Rows of w are shared out to the threads of PyTorch.
// A matrix is stored as f32, as bf16, or as codes with a scale for each group of 32 along k: of 8 bits,
// w = scale code, or of 4 bits with an offset, w = scale (code - 8) + offset, two to a byte, the first low.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

constexpr int64_t GROUP = 32;       // weights that share a scale
constexpr int64_t ROWS = 4;         // rows of x that one pass over w serves
constexpr int64_t AHEAD = 4096;     // bytes from a use to what is asked for
constexpr int64_t LEAST = 1 << 14;  // weights that are worth a thread

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

template <int M, class W, class Y>
void some_rows(const W& w, const float* x, Y* y, int64_t n, int64_t k) {
  torch::stable::parallel_for(0, n, std::max<int64_t>(1, LEAST / std::max<int64_t>(k, 1)),
                              [&](int64_t begin, int64_t end) {
                                float results[M];
                                for (int64_t j = begin; j < end; j++) {
                                  w.template row<M>(j, x, results);
                                  for (int m = 0; m < M; m++) store(results[m], y + m * n + j);
                                }
                              });
}

template <class W, class Y>
void all_rows(W w, const float* x, Y* y, int64_t rows, int64_t n, int64_t k) {
  for (int64_t m = 0; m < rows; m += ROWS) {
    switch (std::min(rows - m, ROWS)) {
      case 1: some_rows<1>(w, x + m * k, y + m * n, n, k); break;
      case 2: some_rows<2>(w, x + m * k, y + m * n, n, k); break;
      case 3: some_rows<3>(w, x + m * k, y + m * n, n, k); break;
      default: some_rows<4>(w, x + m * k, y + m * n, n, k);
    }
    if constexpr (requires { w.sums; }) w.sums += ROWS * (k / GROUP);
  }
}

// x as float32 and the result, in the dtype of x.
struct Call {
  std::vector<float> copy;
  const float* x;
  Tensor y;
  int64_t rows, n, k;
  bool half;

  Call(const Tensor& given, int64_t n)
      : x(nullptr), y(torch::stable::new_empty(given, {given.size(0), n})),
        rows(given.size(0)), n(n), k(given.size(1)), half(given.scalar_type() == ScalarType::BFloat16) {
    STD_TORCH_CHECK(given.is_contiguous(), "x is not contiguous");
    STD_TORCH_CHECK(half || given.scalar_type() == ScalarType::Float, "x is neither float32 nor bfloat16");
    if (!half) {
      x = static_cast<const float*>(given.data_ptr());
      return;
    }
    const auto* p = static_cast<const uint16_t*>(given.data_ptr());
    copy.resize(rows * k);
    for (int64_t i = 0; i < rows * k; i++) copy[i] = wide(p[i]);
    x = copy.data();
  }

  template <class W>
  Tensor with(W w) {
    if (half) all_rows(w, x, static_cast<uint16_t*>(y.data_ptr()), rows, n, k);
    else all_rows(w, x, static_cast<float*>(y.data_ptr()), rows, n, k);
    return y;
  }
};

template <class T>
const T* data(const Tensor& w, int64_t size, const char* name) {
  STD_TORCH_CHECK(w.is_contiguous() && w.numel() == size, name, " has another size or is not contiguous");
  return static_cast<const T*>(w.data_ptr());
}

Tensor product(const Tensor& x, const Tensor& w) {
  Call call(x, w.size(0));
  const int64_t size = call.n * call.k;
  if (w.scalar_type() == ScalarType::BFloat16)
    return call.with(Plain<uint16_t>{data<uint16_t>(w, size, "w"), call.k});
  STD_TORCH_CHECK(w.scalar_type() == ScalarType::Float, "w is neither float32 nor bfloat16");
  return call.with(Plain<float>{data<float>(w, size, "w"), call.k});
}

// Each group of x: its sum, and its entries at even places before those at odd ones, as codes of 4 bits pair.
struct Paired {
  std::vector<float> x, sums;

  Paired(const float* given, int64_t size) : x(size), sums(size / GROUP) {
    for (int64_t i = 0; i < size; i++) {
      const int64_t first = i - i % GROUP, place = i % GROUP;
      x[first + place / 2 + place % 2 * (GROUP / 2)] = given[i];
      sums[i / GROUP] += given[i];
    }
  }
};

template <class S>
Tensor in_groups(Call& call, const Tensor& codes, const Tensor& scales, const std::optional<Tensor>& offsets) {
  const int64_t size = call.n * call.k, groups = size / GROUP;
  const S* s = data<S>(scales, groups, "scales");
  if (!offsets) return call.with(Bytes<S>{data<int8_t>(codes, size, "codes"), s, call.k});
  const Paired paired(call.x, call.rows * call.k);
  call.x = paired.x.data();
  const S* o = data<S>(*offsets, groups, "offsets");
  return call.with(Nibbles<S>{data<uint8_t>(codes, size / 2, "codes"), s, o, paired.sums.data(), call.k});
}

Tensor coded(const Tensor& x, const Tensor& codes, const Tensor& scales, std::optional<Tensor> offsets) {
  Call call(x, codes.size(0));
  STD_TORCH_CHECK(call.k % GROUP == 0, "not a whole number of groups");
  STD_TORCH_CHECK(!offsets || offsets->scalar_type() == scales.scalar_type(), "scales and offsets differ in dtype");
  if (scales.scalar_type() == ScalarType::BFloat16) return in_groups<uint16_t>(call, codes, scales, offsets);
  STD_TORCH_CHECK(scales.scalar_type() == ScalarType::Float, "scales are neither float32 nor bfloat16");
  return in_groups<float>(call, codes, scales, offsets);
}

// All of w[n, k] as floats, in the dtype of the scales.
template <class S>
Tensor floats(const Tensor& codes, const Tensor& scales, const std::optional<Tensor>& offsets) {
  const int64_t n = codes.size(0), groups = scales.size(1), k = groups * GROUP;
  const S* s = data<S>(scales, n * groups, "scales");
  const S* o = offsets ? data<S>(*offsets, n * groups, "offsets") : nullptr;
  const int8_t* c = data<int8_t>(codes, offsets ? n * k / 2 : n * k, "codes");
  Tensor w = torch::stable::new_empty(scales, {n, k});
  S* y = static_cast<S*>(w.data_ptr());
  torch::stable::parallel_for(0, n * groups, LEAST / GROUP, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++) {
      const float scale = wide(s[g]), offset = o ? wide(o[g]) : 0;
      float group[GROUP];
      if (o) {
        const uint8_t* p = reinterpret_cast<const uint8_t*>(c) + g * (GROUP / 2);
        for (int64_t i = 0; i < GROUP / 2; i++) {
          group[2 * i] = scale * float((p[i] & 15) - 8) + offset;
          group[2 * i + 1] = scale * float((p[i] >> 4) - 8) + offset;
        }
      } else {
        for (int64_t i = 0; i < GROUP; i++) group[i] = scale * float(c[g * GROUP + i]);
      }
      for (int64_t i = 0; i < GROUP; i++) store(group[i], y + g * GROUP + i);
    }
  });
  return w;
}

Tensor decoded(const Tensor& codes, const Tensor& scales, std::optional<Tensor> offsets) {
  STD_TORCH_CHECK(!offsets || offsets->scalar_type() == scales.scalar_type(), "scales and offsets differ in dtype");
  if (scales.scalar_type() == ScalarType::BFloat16) return floats<uint16_t>(codes, scales, offsets);
  STD_TORCH_CHECK(scales.scalar_type() == ScalarType::Float, "scales are neither float32 nor bfloat16");
  return floats<float>(codes, scales, offsets);
}

STABLE_TORCH_LIBRARY_FRAGMENT(few_rows, m) {
  m.def("product(Tensor x, Tensor w) -> Tensor");
  m.def("coded(Tensor x, Tensor codes, Tensor scales, Tensor? offsets=None) -> Tensor");
  m.def("decoded(Tensor codes, Tensor scales, Tensor? offsets=None) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(few_rows, CPU, m) {
  m.impl("product", TORCH_BOX(&product));
  m.impl("coded", TORCH_BOX(&coded));
  m.impl("decoded", TORCH_BOX(&decoded));
}

}  // namespace
