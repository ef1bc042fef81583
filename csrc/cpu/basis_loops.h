// The loops over rows of the basis, stored in S. Included by vector_loops.h.
#pragma once

#include "cpu/widen.h"

namespace soae::cpu {

namespace {

template <typename T, typename S>
void scale_dot(T* w, const T* a, T scale, const Panel<S>& panel, const Ahead& ahead, double* result, int64_t n) {
  const S *v0 = panel.row[0], *v1 = panel.row[1], *v2 = panel.row[2], *v3 = panel.row[3];
  Vector<T> d0{}, d1{}, d2{}, d3{}, dw{};
  double t0 = 0, t1 = 0, t2 = 0, t3 = 0, tw = 0;
  sweep<T, S>(
      ahead, n,
      [&](int64_t i) {
        const Vector<T> value = load(a + i) * scale;
        store(w + i, value);
        d0 += value * widen<T>(v0 + i);
        d1 += value * widen<T>(v1 + i);
        d2 += value * widen<T>(v2 + i);
        d3 += value * widen<T>(v3 + i);
        dw += value * value;
      },
      [&](int64_t i) {
        const T value = a[i] * scale;
        w[i] = value;
        t0 += double(value * to_working<T>(v0[i]));
        t1 += double(value * to_working<T>(v1[i]));
        t2 += double(value * to_working<T>(v2[i]));
        t3 += double(value * to_working<T>(v3[i]));
        tw += double(value * value);
      },
      [&] {
        t0 += total<T>(d0), t1 += total<T>(d1), t2 += total<T>(d2), t3 += total<T>(d3), tw += total<T>(dw);
        d0 = d1 = d2 = d3 = dw = Vector<T>{};
      });
  result[0] = t0, result[1] = t1, result[2] = t2, result[3] = t3, result[4] = tw;
}

template <typename T, typename S>
void update_dot(T* w, const Panel<S>& used, const T* h, const Panel<S>& next, const Ahead& ahead, double* result,
                int64_t n) {
  const S *u0 = used.row[0], *u1 = used.row[1], *u2 = used.row[2], *u3 = used.row[3];
  const S *v0 = next.row[0], *v1 = next.row[1], *v2 = next.row[2], *v3 = next.row[3];
  const T h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];
  Vector<T> d0{}, d1{}, d2{}, d3{};
  double t0 = 0, t1 = 0, t2 = 0, t3 = 0;
  sweep<T, S>(
      ahead, n,
      [&](int64_t i) {
        const Vector<T> value =
            load(w + i) - h0 * widen<T>(u0 + i) - h1 * widen<T>(u1 + i) - h2 * widen<T>(u2 + i) - h3 * widen<T>(u3 + i);
        store(w + i, value);
        d0 += value * widen<T>(v0 + i);
        d1 += value * widen<T>(v1 + i);
        d2 += value * widen<T>(v2 + i);
        d3 += value * widen<T>(v3 + i);
      },
      [&](int64_t i) {
        const T value = w[i] - h0 * to_working<T>(u0[i]) - h1 * to_working<T>(u1[i]) - h2 * to_working<T>(u2[i]) - h3 * to_working<T>(u3[i]);
        w[i] = value;
        t0 += double(value * to_working<T>(v0[i]));
        t1 += double(value * to_working<T>(v1[i]));
        t2 += double(value * to_working<T>(v2[i]));
        t3 += double(value * to_working<T>(v3[i]));
      },
      [&] {
        t0 += total<T>(d0), t1 += total<T>(d1), t2 += total<T>(d2), t3 += total<T>(d3);
        d0 = d1 = d2 = d3 = Vector<T>{};
      });
  result[0] = t0, result[1] = t1, result[2] = t2, result[3] = t3;
}

template <typename T, typename S>
double update_norm(T* w, const Panel<S>& used, const T* h, int64_t n) {
  const S *u0 = used.row[0], *u1 = used.row[1], *u2 = used.row[2], *u3 = used.row[3];
  const T h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];
  Vector<T> dw{};
  double tw = 0;
  sweep<T, S>(
      Ahead{}, n,
      [&](int64_t i) {
        const Vector<T> value =
            load(w + i) - h0 * widen<T>(u0 + i) - h1 * widen<T>(u1 + i) - h2 * widen<T>(u2 + i) - h3 * widen<T>(u3 + i);
        store(w + i, value);
        dw += value * value;
      },
      [&](int64_t i) {
        const T value = w[i] - h0 * to_working<T>(u0[i]) - h1 * to_working<T>(u1[i]) - h2 * to_working<T>(u2[i]) - h3 * to_working<T>(u3[i]);
        w[i] = value;
        tw += double(value * value);
      },
      [&] {
        tw += total<T>(dw);
        dw = Vector<T>{};
      });
  return tw;
}

template <typename T, typename S>
void combine(T* w, const Panel<S>& panel, const T* y, int64_t n) {
  const S *v0 = panel.row[0], *v1 = panel.row[1], *v2 = panel.row[2], *v3 = panel.row[3];
  const T y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[3];
  sweep<T, S>(
      Ahead{}, n,
      [&](int64_t i) {
        store(w + i, load(w + i) + y0 * widen<T>(v0 + i) + y1 * widen<T>(v1 + i) + y2 * widen<T>(v2 + i) +
                         y3 * widen<T>(v3 + i));
      },
      [&](int64_t i) {
        w[i] += y0 * to_working<T>(v0[i]) + y1 * to_working<T>(v1[i]) + y2 * to_working<T>(v2[i]) +
                y3 * to_working<T>(v3[i]);
      },
      [] {});
}

template <typename T, typename S>
void append(S* row, T* out, const T* a, T scale, T unit, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const S stored = to_stored<S>(a[i] * scale);
    row[i] = stored;
    out[i] = to_working<T>(stored) * unit;
  }
}

template <typename T, typename S>
void restore(T* out, const S* row, T unit, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = to_working<T>(row[i]) * unit;
}

}  // namespace

}  // namespace soae::cpu
