// Python sees plain integers only (pointers, sizes, dtype codes, a stream): no tensor type crosses this file, so one
// build serves every torch. Everything that launches work releases the GIL.
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "gmres.h"
#if defined(SOAE_SIMT)
#include "simt/simt.h"
#else
#include "cpu/matvec.h"
#endif

#ifndef SOAE_MODULE
#define SOAE_MODULE _C
#endif
#ifndef SOAE_VERSION
#define SOAE_VERSION "unknown"
#endif
#ifndef SOAE_CUDA_ARCHS
#define SOAE_CUDA_ARCHS ""
#endif

#if defined(SOAE_WITH_CUDA)
namespace soae::cuda {
// Defined beside the launchers (csrc/cuda): what the driver and the runtime say, without creating a context.
int runtime_version();
int driver_version();
void force_variant(int variant, int blocks);  // plan.h
void describe_plan(const Solve& p, int& variant, int& blocks);
}  // namespace soae::cuda
#endif

namespace py = pybind11;
using soae::Solve;
using soae::System;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

struct Launchers {
  std::int64_t (*scratch_bytes)(const Solve&);
  void (*begin)(const Solve&, const void*, void*);
  void (*step)(const Solve&, std::int32_t, const void*, void*);
  void (*finish)(const Solve&, bool, void*);
  void (*correct)(const Solve&, const void*, void*);
  void (*close)(const Solve&, const void*, bool, void*);
};

void add_launchers(py::module_ m, const Launchers& l) {
  using Address = std::uintptr_t;
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("scratch_bytes", l.scratch_bytes, py::arg("solve"));
  m.def(
      "begin",
      [f = l.begin](const Solve& s, Address ax, Address stream) { f(s, pointer<void>(ax), pointer<void>(stream)); },
      py::arg("solve"), py::arg("ax"), py::arg("stream"), Release());
  m.def(
      "step",
      [f = l.step](const Solve& s, std::int32_t j, Address w, Address stream) {
        f(s, j, pointer<void>(w), pointer<void>(stream));
      },
      py::arg("solve"), py::arg("j"), py::arg("w"), py::arg("stream"), Release());
  m.def(
      "finish",
      [f = l.finish](const Solve& s, bool preconditioned, Address stream) {
        f(s, preconditioned, pointer<void>(stream));
      },
      py::arg("solve"), py::arg("preconditioned"), py::arg("stream"), Release());
  m.def(
      "correct",
      [f = l.correct](const Solve& s, Address z, Address stream) { f(s, pointer<void>(z), pointer<void>(stream)); },
      py::arg("solve"), py::arg("z"), py::arg("stream"), Release());
  m.def(
      "close",
      [f = l.close](const Solve& s, Address ax, bool stop, Address stream) {
        f(s, pointer<void>(ax), stop, pointer<void>(stream));
      },
      py::arg("solve"), py::arg("ax"), py::arg("stop"), py::arg("stream"), Release());
}

template <typename T>
void def_pointer(py::class_<Solve>& c, const char* name, T* Solve::*member) {
  c.def_property(
      name, [member](const Solve& s) { return reinterpret_cast<std::uintptr_t>(s.*member); },
      [member](Solve& s, std::uintptr_t address) { s.*member = pointer<T>(address); });
}

void add_solve(py::module_& m) {
  py::class_<Solve> c(m, "Solve", py::module_local());  // two builds of this file may live in one process
  c.def(py::init([] { return Solve{}; }));
  c.def_readwrite("batch", &Solve::batch);
  c.def_readwrite("n", &Solve::n);
  c.def_readwrite("ld", &Solve::ld);
  c.def_readwrite("restart", &Solve::restart);
  c.def_readwrite("max_iters", &Solve::max_iters);
  c.def_readwrite("dtype", &Solve::dtype);
  c.def_readwrite("orthogonalization", &Solve::orthogonalization);
  c.def_readwrite("device", &Solve::device);
  c.def_readwrite("threads", &Solve::threads);
  c.def_readwrite("basis_dtype", &Solve::basis_dtype);
  c.def_readwrite("basis_exponent", &Solve::basis_exponent);
  c.def_readwrite("update_rows", &Solve::update_rows);
  c.def_readwrite("update_ld", &Solve::update_ld);
  def_pointer(c, "b", &Solve::b);
  def_pointer(c, "x", &Solve::x);
  def_pointer(c, "candidate", &Solve::candidate);
  def_pointer(c, "direction", &Solve::direction);
  def_pointer(c, "basis", &Solve::basis);
  c.def_readwrite("chunk_shift", &Solve::chunk_shift);
  c.def("set_chunk", [](Solve& s, std::size_t chunk, std::uintptr_t address) {
    if (chunk >= soae::kBasisChunks) throw py::index_error("a basis has fewer chunks");
    s.chunks[chunk] = pointer<void>(address);
  }, py::arg("chunk"), py::arg("address"));
  def_pointer(c, "update", &Solve::update);
  def_pointer(c, "r", &Solve::r);
  def_pointer(c, "rotations", &Solve::rotations);
  def_pointer(c, "inverse", &Solve::inverse);
  def_pointer(c, "g", &Solve::g);
  def_pointer(c, "estimates", &Solve::estimates);
  def_pointer(c, "hessenberg", &Solve::hessenberg);
  def_pointer(c, "rtol", &Solve::rtol);
  def_pointer(c, "atol", &Solve::atol);
  def_pointer(c, "systems", &Solve::systems);
  def_pointer(c, "active", &Solve::active);
  def_pointer(c, "scratch", &Solve::scratch);
}

#if !defined(SOAE_SIMT)
void add_matvec(py::module_ m) {
  using Address = std::uintptr_t;
  m.def(
      "dense_cycle",
      [](const Solve& solve, Address matrices, Address out, std::int64_t row_stride, std::int64_t matrix_stride) {
        return soae::cpu::dense_cycle(
            solve, {solve.batch, solve.n, row_stride, matrix_stride, solve.dtype, solve.threads,
                    pointer<void>(matrices), solve.direction, pointer<void>(out)});
      },
      py::arg("solve"), py::arg("matrices"), py::arg("out"), py::arg("row_stride"), py::arg("matrix_stride"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "matvec",
      [](Address matrices, Address v, Address out, std::int64_t batch, std::int64_t n, std::int64_t row_stride,
         std::int64_t matrix_stride, std::int32_t dtype, std::int32_t threads) {
        soae::cpu::matvec({batch, n, row_stride, matrix_stride, dtype, threads, pointer<void>(matrices),
                           pointer<void>(v), pointer<void>(out)});
      },
      py::arg("matrices"), py::arg("v"), py::arg("out"), py::arg("batch"), py::arg("n"), py::arg("row_stride"),
      py::arg("matrix_stride"), py::arg("dtype"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}
#endif

// Offsets of System's fields in units of their own size, so that Python can view the records as two tables.
py::dict system_layout() {
  py::dict layout;
  layout["size"] = sizeof(System);
  layout["tolerance"] = offsetof(System, tolerance) / sizeof(double);
  layout["residual"] = offsetof(System, residual) / sizeof(double);
  layout["beta"] = offsetof(System, beta) / sizeof(double);
  layout["scale"] = offsetof(System, scale) / sizeof(std::int32_t);
  layout["status"] = offsetof(System, status) / sizeof(std::int32_t);
  layout["outcome"] = offsetof(System, outcome) / sizeof(std::int32_t);
  layout["length"] = offsetof(System, length) / sizeof(std::int32_t);
  layout["iterations"] = offsetof(System, iterations) / sizeof(std::int32_t);
  return layout;
}

py::dict build_info() {
  py::dict info;
  info["version"] = SOAE_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#if defined(SOAE_WITH_CUDA)
  info["cuda"] = soae::cuda::runtime_version();
#else
  info["cuda"] = py::none();
#endif
  py::list archs;
  const std::string names = SOAE_CUDA_ARCHS;  // "75-real,80-real,…"
  for (std::size_t begin = 0; begin < names.size();) {
    std::size_t end = names.find(',', begin);
    if (end == std::string::npos) end = names.size();
    archs.append(names.substr(begin, end - begin));
    begin = end + 1;
  }
  info["archs"] = archs;
  return info;
}

}  // namespace

PYBIND11_MODULE(SOAE_MODULE, m) {
  m.doc() = "Kernels of soae_ext. Not a public interface: see soae_ext.gmres.";
  add_solve(m);
  m.attr("SYSTEM") = system_layout();
  m.def("build_info", &build_info);
#if !defined(SOAE_SIMT)
  {
    using namespace soae::cpu;
    add_launchers(m.def_submodule("cpu"), {scratch_bytes, begin, step, finish, correct, close});
    add_matvec(m.attr("cpu"));
  }
#endif
#if defined(SOAE_WITH_CUDA)
  {
    using namespace soae::cuda;
    add_launchers(m.def_submodule("cuda"), {scratch_bytes, begin, step, finish, correct, close});
    m.attr("cuda").attr("runtime_version") = py::cpp_function(&runtime_version);
    m.attr("cuda").attr("force_variant") =
        py::cpp_function(&force_variant, py::arg("variant"), py::arg("blocks") = 0);
    m.attr("cuda").attr("plan") = py::cpp_function(
        [](const Solve& s) {
          int variant = 0, blocks = 0;
          describe_plan(s, variant, blocks);
          return py::make_tuple(variant, blocks);
        },
        py::arg("solve"));
    m.attr("cuda").attr("driver_version") = py::cpp_function(&driver_version);
  }
#endif
#if defined(SOAE_SIMT)
  m.def("set_schedule", &soae::simt::set_schedule, py::arg("name"), py::arg("seed") = 0);
  m.def("set_multiprocessors", &soae::simt::set_multiprocessors, py::arg("count"));
  m.def("set_largest_cluster", &soae::simt::set_largest_cluster, py::arg("blocks"));
  m.def("self_test", &soae::simt::self_test, py::arg("name"));
  m.def("basis_offset", &soae::simt::basis_offset, py::arg("solve"), py::arg("system"), py::arg("row"));
#endif
}
