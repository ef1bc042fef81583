// The loops themselves. Included once per instruction set by a file that sets SOAE_LEVEL and SOAE_VECTOR_BYTES and is
// compiled with that set's flags. Everything but the two tables is local to that file, and nothing of the standard
// library is called: the linker would be free to keep this file's copy for machines that cannot run it.
#include <cstdint>
#include <cstring>

#include "cpu/vector.h"

namespace soae::cpu {

namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kBlock = 1024;  // elements whose sum is kept in the working precision

template <typename T>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(SOAE_VECTOR_BYTES)));
  using Int = int32_t;
  static constexpr Int kMagnitude = 0x7fffffff;
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(SOAE_VECTOR_BYTES)));
  using Int = int64_t;
  static constexpr Int kMagnitude = 0x7fffffffffffffff;
};
template <typename T>
using Vector = typename Simd<T>::Vector;

template <typename T>
constexpr int64_t kLanes = SOAE_VECTOR_BYTES / sizeof(T);
template <typename T>
constexpr int64_t kLine = kLineBytes / sizeof(T);

template <typename T>
inline Vector<T> load(const T* a) {
  Vector<T> v;
  std::memcpy(&v, a, sizeof v);
  return v;
}

template <typename T>
inline void store(T* a, const Vector<T>& v) {
  std::memcpy(a, &v, sizeof v);
}

// Sum of the first 2 * half numbers, pairwise.
template <int64_t half, typename T>
inline T fold(T* lane) {
  for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  if constexpr (half > 1) return fold<half / 2>(lane);
  return lane[0];
}

template <typename T>
inline double total(const Vector<T>& v) {
  T lane[kLanes<T>];
  std::memcpy(lane, &v, sizeof v);
  return double(fold<kLanes<T> / 2>(lane));
}

// Always inline: GCC takes a function that only prefetches for one without effect, and drops the call.
template <typename T>
__attribute__((always_inline)) inline void fetch(const Ahead& ahead, int64_t i) {
  if (!ahead.wanted) return;
  for (int r = 0; r < kPanel; ++r) {
    __builtin_prefetch(reinterpret_cast<const void*>(ahead.row[r] + i * sizeof(T)), 0, 2);
  }
}

// Magnitudes of floating-point numbers are ordered as their bit patterns are, with infinity and NaN above all others,
// so that one integer maximum answers both questions.
template <typename T>
double max_abs(const T* a, const Ahead& ahead, int64_t n) {
  using Int = typename Simd<T>::Int;
  Int largest = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    for (int64_t i = begin; i < end; i += kLine<T>) fetch<T>(ahead, i);
#pragma omp simd reduction(max : largest)
    for (int64_t i = begin; i < end; ++i) {
      Int bits;
      std::memcpy(&bits, a + i, sizeof(T));
      bits &= Simd<T>::kMagnitude;
      largest = bits > largest ? bits : largest;
    }
  }
  T value;
  std::memcpy(&value, &largest, sizeof(T));
  return value - value == T(0) ? double(value) : __builtin_huge_val();
}

template <typename T>
double sum_squares(const T* a, T scale, int64_t n) {
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      const T value = a[i] * scale;
      part += value * value;
    }
    sum += double(part);
  }
  return sum;
}

template <typename T>
void multiply(T* out, const T* a, T scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] * scale;
}

template <typename T>
void subtract(T* out, const T* a, const T* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] - b[i];
}

template <typename T>
void add_scaled(T* first, T* second, const T* a, const T* b, T scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T value = a[i] + scale * b[i];
    first[i] = value;
    second[i] = value;
  }
}

// Calls vector(i) for whole vectors and scalar(i) for the rest, and flush() after every block; asks for a cache line of
// each row ahead per cache line of the loop.
template <typename T, typename OnVector, typename OnScalar, typename Flush>
inline void sweep(const Ahead& ahead, int64_t n, OnVector&& vector, OnScalar&& scalar, Flush&& flush) {
  int64_t i = 0;
  while (i + kLine<T> <= n) {
    const int64_t rest = (n - i) / kLine<T> * kLine<T>;
    const int64_t end = i + (rest < kBlock ? rest : kBlock);
    for (; i < end; i += kLine<T>) {
      fetch<T>(ahead, i);
      for (int64_t part = 0; part < kLine<T>; part += kLanes<T>) vector(i + part);
    }
    flush();
  }
  for (; i < n; ++i) scalar(i);
}

template <typename T>
void scale_dot(T* w, const T* a, T scale, const Panel<T>& panel, const Ahead& ahead, double* result, int64_t n) {
  const T *v0 = panel.row[0], *v1 = panel.row[1], *v2 = panel.row[2], *v3 = panel.row[3];
  Vector<T> d0{}, d1{}, d2{}, d3{}, dw{};
  double t0 = 0, t1 = 0, t2 = 0, t3 = 0, tw = 0;
  sweep<T>(
      ahead, n,
      [&](int64_t i) {
        const Vector<T> value = load(a + i) * scale;
        store(w + i, value);
        d0 += value * load(v0 + i);
        d1 += value * load(v1 + i);
        d2 += value * load(v2 + i);
        d3 += value * load(v3 + i);
        dw += value * value;
      },
      [&](int64_t i) {
        const T value = a[i] * scale;
        w[i] = value;
        t0 += double(value * v0[i]);
        t1 += double(value * v1[i]);
        t2 += double(value * v2[i]);
        t3 += double(value * v3[i]);
        tw += double(value * value);
      },
      [&] {
        t0 += total<T>(d0), t1 += total<T>(d1), t2 += total<T>(d2), t3 += total<T>(d3), tw += total<T>(dw);
        d0 = d1 = d2 = d3 = dw = Vector<T>{};
      });
  result[0] = t0, result[1] = t1, result[2] = t2, result[3] = t3, result[4] = tw;
}

template <typename T>
void update_dot(T* w, const Panel<T>& used, const T* h, const Panel<T>& next, const Ahead& ahead, double* result,
                int64_t n) {
  const T *u0 = used.row[0], *u1 = used.row[1], *u2 = used.row[2], *u3 = used.row[3];
  const T *v0 = next.row[0], *v1 = next.row[1], *v2 = next.row[2], *v3 = next.row[3];
  const T h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];
  Vector<T> d0{}, d1{}, d2{}, d3{};
  double t0 = 0, t1 = 0, t2 = 0, t3 = 0;
  sweep<T>(
      ahead, n,
      [&](int64_t i) {
        const Vector<T> value =
            load(w + i) - h0 * load(u0 + i) - h1 * load(u1 + i) - h2 * load(u2 + i) - h3 * load(u3 + i);
        store(w + i, value);
        d0 += value * load(v0 + i);
        d1 += value * load(v1 + i);
        d2 += value * load(v2 + i);
        d3 += value * load(v3 + i);
      },
      [&](int64_t i) {
        const T value = w[i] - h0 * u0[i] - h1 * u1[i] - h2 * u2[i] - h3 * u3[i];
        w[i] = value;
        t0 += double(value * v0[i]);
        t1 += double(value * v1[i]);
        t2 += double(value * v2[i]);
        t3 += double(value * v3[i]);
      },
      [&] {
        t0 += total<T>(d0), t1 += total<T>(d1), t2 += total<T>(d2), t3 += total<T>(d3);
        d0 = d1 = d2 = d3 = Vector<T>{};
      });
  result[0] = t0, result[1] = t1, result[2] = t2, result[3] = t3;
}

template <typename T>
double update_norm(T* w, const Panel<T>& used, const T* h, int64_t n) {
  const T *u0 = used.row[0], *u1 = used.row[1], *u2 = used.row[2], *u3 = used.row[3];
  const T h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];
  Vector<T> dw{};
  double tw = 0;
  sweep<T>(
      Ahead{}, n,
      [&](int64_t i) {
        const Vector<T> value =
            load(w + i) - h0 * load(u0 + i) - h1 * load(u1 + i) - h2 * load(u2 + i) - h3 * load(u3 + i);
        store(w + i, value);
        dw += value * value;
      },
      [&](int64_t i) {
        const T value = w[i] - h0 * u0[i] - h1 * u1[i] - h2 * u2[i] - h3 * u3[i];
        w[i] = value;
        tw += double(value * value);
      },
      [&] {
        tw += total<T>(dw);
        dw = Vector<T>{};
      });
  return tw;
}

template <typename T>
void dot(const Panel<T>& panel, const T* v, const Ahead& ahead, double* result, int64_t n) {
  const T *v0 = panel.row[0], *v1 = panel.row[1], *v2 = panel.row[2], *v3 = panel.row[3];
  Vector<T> d0{}, d1{}, d2{}, d3{};
  double t0 = 0, t1 = 0, t2 = 0, t3 = 0;
  sweep<T>(
      ahead, n,
      [&](int64_t i) {
        const Vector<T> value = load(v + i);
        d0 += value * load(v0 + i);
        d1 += value * load(v1 + i);
        d2 += value * load(v2 + i);
        d3 += value * load(v3 + i);
      },
      [&](int64_t i) {
        t0 += double(v[i] * v0[i]);
        t1 += double(v[i] * v1[i]);
        t2 += double(v[i] * v2[i]);
        t3 += double(v[i] * v3[i]);
      },
      [&] {
        t0 += total<T>(d0), t1 += total<T>(d1), t2 += total<T>(d2), t3 += total<T>(d3);
        d0 = d1 = d2 = d3 = Vector<T>{};
      });
  result[0] = t0, result[1] = t1, result[2] = t2, result[3] = t3;
}

template <typename T>
void combine(T* w, const Panel<T>& panel, const T* y, int64_t n) {
  const T *v0 = panel.row[0], *v1 = panel.row[1], *v2 = panel.row[2], *v3 = panel.row[3];
  const T y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[3];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) w[i] += y0 * v0[i] + y1 * v1[i] + y2 * v2[i] + y3 * v3[i];
}

template <typename T>
constexpr VectorLoops<T> table() {
  return {max_abs<T>,   sum_squares<T>, multiply<T>,    subtract<T>, add_scaled<T>,
          scale_dot<T>, update_dot<T>,  update_norm<T>, dot<T>,      combine<T>};
}

}  // namespace

namespace SOAE_LEVEL {
const VectorLoops<float> kFloatLoops = table<float>();
const VectorLoops<double> kDoubleLoops = table<double>();
}  // namespace SOAE_LEVEL

}  // namespace soae::cpu
