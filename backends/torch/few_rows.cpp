// Products of a few rows with a matrix, y[m, n] = sum over k of x[m, k] w[n, k], as fast as memory gives w.
//
// Rows of w are shared out to the threads of PyTorch. What one of them takes is in `rows.h`.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "rows.h"

namespace {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

constexpr int64_t LEAST = 1 << 14;  // weights that are worth a thread

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

// The entries of one group as codes, each the nearest: half to even, of an entry that is no number 0.
INLINE void nearest(const float* x, float scale, float offset, float least, float most, float middle, uint8_t* codes) {
  for (int64_t i = 0; i < GROUP; i++) {
    const float code = __builtin_rintf((x[i] - offset) / scale) + middle;
    const float bounded = code < least ? least : code > most ? most : code;
    codes[i] = uint8_t(int32_t(scale == 0 ? middle : bounded == bounded ? bounded : 0));
  }
}

// The least and the greatest of a group; both are no numbers where an entry is none.
INLINE void bounds(const float* x, float& least, float& most) {
  float low[GROUP], high[GROUP];
  int32_t none = 0;
  for (int64_t i = 0; i < GROUP; i++) low[i] = high[i] = x[i], none |= x[i] != x[i];
#pragma GCC unroll 8
  for (int64_t half = GROUP / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; i++) {
      low[i] = low[half + i] < low[i] ? low[half + i] : low[i];
      high[i] = high[half + i] > high[i] ? high[half + i] : high[i];
    }
  }
  least = none ? NAN : low[0];
  most = none ? NAN : high[0];
}

template <class S>
void in_codes(const Tensor& w, const Tensor& codes, const Tensor& scales, const std::optional<Tensor>& offsets) {
  const int64_t groups = w.numel() / GROUP, bytes = offsets ? GROUP / 2 : GROUP;
  const S* given = data<S>(w, groups * GROUP, "w");
  uint8_t* c = const_cast<uint8_t*>(data<uint8_t>(codes, groups * bytes, "codes"));
  S* s = const_cast<S*>(data<S>(scales, groups, "scales"));
  S* o = offsets ? const_cast<S*>(data<S>(*offsets, groups, "offsets")) : nullptr;
  torch::stable::parallel_for(0, groups, LEAST / GROUP, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++) {
      float x[GROUP], least, most;
      for (int64_t i = 0; i < GROUP; i++) x[i] = wide(given[g * GROUP + i]);
      bounds(x, least, most);
      if (o) {
        const float scale = (most - least) / 15;
        store(scale, s + g);
        store(least + 8 * scale, o + g);
        uint8_t one[GROUP];
        nearest(x, wide(s[g]), wide(o[g]), 0, 15, 8, one);
        for (int64_t i = 0; i < GROUP / 2; i++) c[g * bytes + i] = uint8_t(one[2 * i] | one[2 * i + 1] << 4);
      } else {
        store((most > -least ? most : -least) / 127, s + g);
        nearest(x, wide(s[g]), 0, -127, 127, 0, c + g * bytes);
      }
    }
  });
}

// The codes, scales and offsets of w, whose dtype the steps have, into what is given for them.
void encode(const Tensor& w, const Tensor& codes, const Tensor& scales, std::optional<Tensor> offsets) {
  STD_TORCH_CHECK(w.size(w.dim() - 1) % GROUP == 0, "not a whole number of groups");
  const auto dtype = w.scalar_type();
  const bool same = scales.scalar_type() == dtype && (!offsets || offsets->scalar_type() == dtype);
  STD_TORCH_CHECK(same && codes.scalar_type() == ScalarType::Char, "codes, scales or offsets have another dtype");
  if (dtype == ScalarType::BFloat16) return in_codes<uint16_t>(w, codes, scales, offsets);
  STD_TORCH_CHECK(dtype == ScalarType::Float, "w is neither float32 nor bfloat16");
  in_codes<float>(w, codes, scales, offsets);
}

STABLE_TORCH_LIBRARY_FRAGMENT(few_rows, m) {
  m.def("product(Tensor x, Tensor w) -> Tensor");
  m.def("coded(Tensor x, Tensor codes, Tensor scales, Tensor? offsets=None) -> Tensor");
  m.def("decoded(Tensor codes, Tensor scales, Tensor? offsets=None) -> Tensor");
  m.def("encode(Tensor w, Tensor(a!) codes, Tensor(b!) scales, Tensor(c!)? offsets=None) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(few_rows, CPU, m) {
  m.impl("product", TORCH_BOX(&product));
  m.impl("coded", TORCH_BOX(&coded));
  m.impl("decoded", TORCH_BOX(&decoded));
  m.impl("encode", TORCH_BOX(&encode));
}

}  // namespace
