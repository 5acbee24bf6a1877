// The steps between matrix products of the operator's update of signed neurons; what
// `nn/sign_update.py` does with PyTorch, row by row. Widths are multiples of a vector.

#include <cmath>

#include "vectors.h"

namespace {

constexpr double EPSILON = 1e-5;  // of the layer norm

template <class R> inline Vec<R> magnitude(Vec<R> x) { return x < 0 ? -x : x; }
template <class R> inline R total(Vec<R> x) {
  R sum = 0;
  for (int i = 0; i < LANES<R>; ++i) sum += x[i];
  return sum;
}

// z = the parts that are not null and, with `own`, own |message|; known = |z|; bound of its size.
template <class R>
void join(const R* own, const R* message, const R* bias, const R* other, R* z, R* known, R* bound,
          long rows, long dim, R factor) {
  const R* given[4] = {own, message, bias, other};
  for (long i = 0; i < rows; ++i) {
    Vec<R> square = Vec<R>{};
    auto put = [&](Vec<R> v) {
      square += v * v;
      store(z, v);
      store(known, magnitude<R>(v));
      z += LANES<R>;
      known += LANES<R>;
    };
    for (const R* part : given)
      for (long f = 0; part != nullptr && f < dim; f += LANES<R>) put(load(part + i * dim + f));
    for (long f = 0; own != nullptr && f < dim; f += LANES<R>)
      put(load(own + i * dim + f) * magnitude<R>(load(message + i * dim + f)));
    bound[i] = 1 / std::sqrt(1 + factor * total<R>(square));
  }
}

// silu(layer norm(x)) times the mask, in place of x's copy `out`; mean and deviation are kept.
template <class R>
void activate(const R* x, const R* norm, const R* norm_bias, const R* mask, R* out, R* mean,
              R* scale, long rows, long dim) {
  for (long i = 0; i < rows; ++i, x += dim, out += dim) {
    Vec<R> sum = Vec<R>{}, square = Vec<R>{};
    for (long f = 0; f < dim; f += LANES<R>) sum += load(x + f);
    const R center = total<R>(sum) / R(dim);
    for (long f = 0; f < dim; f += LANES<R>) {
      const Vec<R> v = load(x + f) - center;
      square += v * v;
    }
    const R inverse = 1 / std::sqrt(total<R>(square) / R(dim) + R(EPSILON));
    mean[i] = center;
    scale[i] = inverse;
    for (long f = 0; f < dim; f += LANES<R>) {
      const Vec<R> v = (load(x + f) - center) * inverse * load(norm + f) + load(norm_bias + f);
      Vec<R> result = v * sigmoid<R>(v);
      if (mask != nullptr) result *= load(mask + i * dim + f);
      store(out + f, result);
    }
  }
}

// out = moved * gate * bound.
template <class R>
void gate_all(const R* moved, const R* gate, const R* bound, R* out, long rows, long dim) {
  for (long i = 0; i < rows; ++i)
    for (long f = i * dim; f < (i + 1) * dim; f += LANES<R>)
      store(out + f, load(moved + f) * load(gate + f) * bound[i]);
}

// Gradients of gate and moved, and of |z|^2 by way of the bound (times 2).
template <class R>
void gate_back(const R* grad, const R* moved, const R* gate, const R* bound, R* of_gate,
               R* of_moved, R* of_size, long rows, long dim, R factor) {
  for (long i = 0; i < rows; ++i) {
    Vec<R> sum = Vec<R>{};
    for (long f = i * dim; f < (i + 1) * dim; f += LANES<R>) {
      const Vec<R> g = load(grad + f) * bound[i], m = load(moved + f);
      const Vec<R> own = g * load(gate + f);
      store(of_gate + f, g * m);
      store(of_moved + f, own);
      sum += own * m;
    }
    of_size[i] = -factor * total<R>(sum) * bound[i] * bound[i];
  }
}

// Gradient of x of `activate` in place of that of its result; sums for norm and biases are added.
template <class R>
void activate_back(const R* x, const R* norm, const R* norm_bias, const R* mask, const R* mean,
                   const R* scale, R* grad, R* of_norm, R* of_norm_bias, R* of_bias, long rows,
                   long dim) {
  for (long i = 0; i < rows; ++i, x += dim, grad += dim) {
    Vec<R> sum = Vec<R>{}, product = Vec<R>{};
    for (long f = 0; f < dim; f += LANES<R>) {
      const Vec<R> unit = (load(x + f) - mean[i]) * scale[i], w = load(norm + f);
      const Vec<R> v = unit * w + load(norm_bias + f), part = sigmoid<R>(v);
      Vec<R> g = load(grad + f);
      if (mask != nullptr) g *= load(mask + i * dim + f);
      g *= part * (R(1) + v * (R(1) - part));
      store(of_norm + f, load(of_norm + f) + g * unit);
      store(of_norm_bias + f, load(of_norm_bias + f) + g);
      g *= w;
      store(grad + f, g);
      sum += g;
      product += g * unit;
    }
    const R first = total<R>(sum) / R(dim), second = total<R>(product) / R(dim);
    for (long f = 0; f < dim; f += LANES<R>) {
      const Vec<R> unit = (load(x + f) - mean[i]) * scale[i];
      const Vec<R> g = (load(grad + f) - first - unit * second) * scale[i];
      store(grad + f, g);
      store(of_bias + f, load(of_bias + f) + g);
    }
  }
}

// Gradients of the parts: (|z| size + of_known) sign(z) + of_z, and through own |message|.
template <class R>
void part(const R* z, const R* of_known, const R* of_z, const R* of_size, const R* own,
          const R* message, R* of_own, R* of_message, R* of_bias, R* of_other, long rows, long dim) {
  R* out[4] = {of_own, of_message, of_bias, of_other};
  auto flow = [&](R size) {
    const Vec<R> v = load(z), known = load(of_known);
    const Vec<R> result =
        v * size + (v > 0 ? known : v < 0 ? -known : Vec<R>{}) + load(of_z);
    z += LANES<R>;
    of_known += LANES<R>;
    of_z += LANES<R>;
    return result;
  };
  for (long i = 0; i < rows; ++i) {
    for (R* to : out)
      for (long f = i * dim; to != nullptr && f < (i + 1) * dim; f += LANES<R>)
        store(to + f, flow(of_size[i]));
    for (long f = i * dim; own != nullptr && f < (i + 1) * dim; f += LANES<R>) {
      const Vec<R> g = flow(of_size[i]), m = load(message + f), turned = g * load(own + f);
      store(of_own + f, load(of_own + f) + g * magnitude<R>(m));
      store(of_message + f,
            load(of_message + f) + (m > 0 ? turned : m < 0 ? -turned : Vec<R>{}));
    }
  }
}

}  // namespace

#define EXPORT(R, NAME)                                                                           \
  extern "C" void join_##NAME(const R* a, const R* b, const R* c, const R* d, R* e, R* f, R* g,   \
                              long rows, long dim, double factor) {                               \
    join<R>(a, b, c, d, e, f, g, rows, dim, R(factor));                                           \
  }                                                                                               \
  extern "C" void activate_##NAME(const R* a, const R* b, const R* c, const R* d, R* e, R* f,     \
                                  R* g, long rows, long dim) {                                    \
    activate<R>(a, b, c, d, e, f, g, rows, dim);                                                  \
  }                                                                                               \
  extern "C" void gate_all_##NAME(const R* a, const R* b, const R* c, R* d, long rows,            \
                                  long dim) {                                                     \
    gate_all<R>(a, b, c, d, rows, dim);                                                           \
  }                                                                                               \
  extern "C" void gate_back_##NAME(const R* a, const R* b, const R* c, const R* d, R* e, R* f,    \
                                   R* g, long rows, long dim, double factor) {                    \
    gate_back<R>(a, b, c, d, e, f, g, rows, dim, R(factor));                                      \
  }                                                                                               \
  extern "C" void activate_back_##NAME(const R* a, const R* b, const R* c, const R* d,            \
                                       const R* e, const R* f, R* g, R* h, R* i, R* j,            \
                                       long rows, long dim) {                                     \
    activate_back<R>(a, b, c, d, e, f, g, h, i, j, rows, dim);                                    \
  }                                                                                               \
  extern "C" void part_##NAME(const R* a, const R* b, const R* c, const R* d, const R* e,         \
                              const R* f, R* g, R* h, R* i, R* j, long rows, long dim) {          \
    part<R>(a, b, c, d, e, f, g, h, i, j, rows, dim);                                             \
  }

EXPORT(float, float)
EXPORT(double, double)
