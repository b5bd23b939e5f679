// What the text of a step stands on: threads that run all of it together, and the functions of its ops.
//
// Each thread runs the whole step and computes its part of every value; `wait` lets no thread go on before
// all have come. The threads are this file's own: between two steps they sleep.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <thread>

#include <unistd.h>

#include "rows.h"

namespace {

constexpr int SPINS = 1 << 12;  // looks at a flag before a thread lets others run

INLINE void pause() {
#if defined(__AVX2__)
  _mm_pause();
#endif
}

template <class Done>
INLINE void until(Done done) {
  for (int spins = 0; !done(); spins++) {
    if (spins < SPINS) pause();
    else std::this_thread::yield();
  }
}

struct Part {
  int64_t begin, end;
};

struct Team {
  int threads;
  std::atomic<int> arrived{0}, phase{0};

  void wait() {
    const int now = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived.store(0, std::memory_order_relaxed);
      phase.store(now + 1, std::memory_order_release);
    } else {
      until([&] { return phase.load(std::memory_order_acquire) != now; });
    }
  }
};

// One thread's view of a step. `at` is the next address of the tensors, in the order in which the text asks.
struct Run {
  const int64_t* sizes;
  const int64_t* at;
  char* scratch;
  int thread;
  Team* team;
  std::atomic<bool>* outside;  // an index was

  void wait() { team->wait(); }
  Part part(int64_t size) const {
    const int64_t n = team->threads;
    return {size * thread / n, size * (thread + 1) / n};
  }
  template <class T>
  T* next() { return reinterpret_cast<T*>(*at++); }
};

constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
INLINE T* take(char*& free, int64_t size) {
  T* taken = reinterpret_cast<T*>(free);
  free += aligned(size * sizeof(T));
  return taken;
}

// The helpers of this thread that calls, kept for its next step.
class Helpers {
 public:
  template <class Step>
  void run(int threads, Step step) {
    std::lock_guard<std::mutex> alone(mutex_);
    if (pid_ != getpid()) {  // a fork has no threads but the one that forked
      pid_ = getpid();
      count_ = 0;
    }
    while (count_ + 1 < threads) {
      count_++;
      std::thread([this, number = count_, seen = round_.load()] { serve(number, seen); }).detach();
    }
    step_ = [](void* given, int thread) { (*static_cast<Step*>(given))(thread); };
    given_ = &step;
    wanted_ = threads;
    left_ = count_;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    step(0);
    until([&] { return left_.load(std::memory_order_acquire) == 0; });
  }

 private:
  void serve(int number, int seen) {
    for (;;) {
      for (int spins = 0; round_.load(std::memory_order_acquire) == seen && spins < SPINS; spins++) pause();
      round_.wait(seen, std::memory_order_acquire);
      seen++;
      if (number < wanted_) step_(given_, number);
      left_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  std::mutex mutex_;
  std::atomic<int> round_{0}, left_{0};
  int pid_ = getpid(), count_ = 0, wanted_ = 0;
  void (*step_)(void*, int) = nullptr;
  void* given_ = nullptr;
};

Helpers& helpers = *new Helpers;  // never destroyed: its threads end with the process

INLINE float wide(bool a) { return a; }
INLINE int64_t wide(int64_t a) { return a; }
INLINE float wide(int8_t a) { return a; }
INLINE void store(int64_t a, int64_t* p) { *p = a; }
INLINE void store(bool a, bool* p) { *p = a; }
INLINE bool wide_bool(const bool* p) { return *p; }

// e to the x, without a branch: 2^n times a polynomial in what is left of x, |r| <= ln 2 / 2.
INLINE float exponential(float x) {
  const float n = __builtin_rintf(x * 1.44269504088896341f);
  const float bounded = n < -126 ? -126.0f : n > 127 ? 127.0f : n;
  const float r = (x - bounded * 0.693359375f) + bounded * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1;
  const int32_t bits = (int32_t(bounded) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float inside = p * power;
  return x != x ? x : x > 88.7228391f ? INFINITY : x < -87.3365448f ? 0.0f : inside;
}
INLINE float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

INLINE int64_t quotient(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
INLINE float quotient(float a, float b) { return std::floor(a / b); }
INLINE int64_t remainder_of(int64_t a, int64_t b) { return a - b * quotient(a, b); }
INLINE float remainder_of(float a, float b) {
  const float rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
template <class T>
INLINE T least(T a, T b) { return a < b || a != a ? a : b; }
template <class T>
INLINE T greatest(T a, T b) { return a > b || a != a ? a : b; }

// y[m, n] for this thread's rows of w.
template <int M, class W>
void some_rows(const W& w, const float* x, float* y, int64_t n, Part part) {
  float results[M];
  for (int64_t j = part.begin; j < part.end; j++) {
    w.template row<M>(j, x, results);
    for (int m = 0; m < M; m++) y[m * n + j] = results[m];
  }
}

template <class W>
__attribute__((noinline)) void product(const Run& run, W w, const float* x, float* y, int64_t rows, int64_t n, int64_t k) {
  const Part part = run.part(n);
  for (int64_t m = 0; m < rows; m += ROWS) {
    switch (std::min(rows - m, ROWS)) {
      case 1: some_rows<1>(w, x + m * k, y + m * n, n, part); break;
      case 2: some_rows<2>(w, x + m * k, y + m * n, n, part); break;
      case 3: some_rows<3>(w, x + m * k, y + m * n, n, part); break;
      default: some_rows<4>(w, x + m * k, y + m * n, n, part);
    }
    if constexpr (requires { w.sums; }) w.sums += ROWS * (k / GROUP);
  }
}

// Each group of x: its sum, and its entries at even places before those at odd ones, as codes of 4 bits pair.
void pair(const Run& run, const float* x, float* paired, float* sums, int64_t size) {
  const Part part = run.part(size / GROUP);
  for (int64_t g = part.begin; g < part.end; g++) {
    float total = 0;
    for (int64_t i = 0; i < GROUP; i++) {
      paired[g * GROUP + i / 2 + i % 2 * (GROUP / 2)] = x[g * GROUP + i];
      total += x[g * GROUP + i];
    }
    sums[g] = total;
  }
}

INLINE float nibble(const int8_t* codes, int64_t i) {
  const uint8_t both = uint8_t(codes[i / 2]);
  return float(i % 2 ? both >> 4 : both & 15) - 8;
}

}  // namespace
