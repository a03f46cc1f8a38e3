// Replays of operators' calls on a GPU that aim_kernels._launch_again has watched: new tensors, then launches.
//
// aim_kernels/_replays.py has the same in Python. What a plan launches is what Triton launched, through Triton's own
// launcher, with other pointers and on today's stream.

#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/headeronly/version.h>

namespace py = pybind11;

namespace {

using Sizes = std::vector<int64_t>;
using Kind = std::vector<int64_t>;

// As in aim_kernels/_replays.py. A source is the place of a tensor among the operands and, after them, those made.
using Pointer = std::tuple<size_t, size_t, int64_t>;  // place among those handed, source, offset
using Launch = std::tuple<py::object, std::vector<py::object>, std::vector<Pointer>>;  // run, handed
using Made = std::tuple<Sizes, Sizes, at::ScalarType>;      // shape, stride, dtype
using Returned = std::tuple<size_t, std::optional<Sizes>>;  // source, and the shape where it is another
using Plan = std::tuple<std::vector<Made>, std::vector<Launch>, std::vector<Returned>, bool>;  // bool: in no tuple

struct Operands {
  Kind kind;
  std::vector<at::Tensor> tensors;
  int device = -1;
  bool served = true;  // tensors are aligned, and all on one GPU; constants are of known types
};

constexpr size_t STREAM = 3;  // in what a compiled kernel is handed
int paused = 0;
py::handle tensor_type, parameter_type, dtype_type, hooks, stream_of;

void add(Operands& into, const at::Tensor& x) {
  if (!x.is_cuda() || !x.has_storage()) {
    into.served = false;
    return;
  }
  if (into.device < 0) into.device = x.get_device();
  into.served = x.get_device() == into.device && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
  into.kind.insert(into.kind.end(), {-1 - x.dim(), static_cast<int64_t>(x.scalar_type())});
  into.kind.insert(into.kind.end(), x.sizes().begin(), x.sizes().end());
  into.kind.insert(into.kind.end(), x.strides().begin(), x.strides().end());
  into.tensors.push_back(x);
}

void add(Operands& into, py::handle x) {
  const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(x.ptr())));
  int64_t value = reinterpret_cast<int64_t>(x.ptr());
  if (PyLong_CheckExact(x.ptr())) {
    int overflow = 0;
    value = PyLong_AsLongLongAndOverflow(x.ptr(), &overflow);
    into.served = !overflow;
  } else if (PyFloat_CheckExact(x.ptr())) {
    const double number = PyFloat_AS_DOUBLE(x.ptr());
    std::memcpy(&value, &number, sizeof value);
  } else if (PyUnicode_CheckExact(x.ptr())) {
    value = PyObject_Hash(x.ptr());
  } else {
    into.served = PyBool_Check(x.ptr()) || x.is_none() || type.is(dtype_type);
  }
  into.kind.insert(into.kind.end(), {reinterpret_cast<int64_t>(type.ptr()), value});
}

Operands operands_of(const py::tuple& given) {
  Operands found;
  found.kind.reserve(12 * given.size());
  found.tensors.reserve(2 * given.size());
  for (size_t i = 0; i < given.size() && found.served; ++i) {
    PyObject* x = PyTuple_GET_ITEM(given.ptr(), i);
    const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(x)));
    if (type.is(tensor_type) || type.is(parameter_type)) {
      add(found, THPVariable_Unpack(x));
    } else {
      add(found, py::handle(x));
    }
  }
  found.served = found.served && found.device >= 0;
  found.kind.push_back(found.device);
  return found;
}

int current_device() {
  static const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  return guard.getDevice().index();
}

// Whether somebody is told of launches.
bool hooked() {
  for (const char* name : {"launch_enter_hook", "launch_exit_hook"}) {
    const py::object hook = hooks.attr(name);
    if (py::bool_(py::getattr(hook, "calls", hook))) return true;
  }
  return false;
}

void start(const Launch& launch, const std::vector<at::Tensor>& tensors, py::handle stream) {
  const auto& [run, values, pointers] = launch;
  std::vector<PyObject*> handed;
  std::vector<py::object> addresses;
  handed.reserve(values.size());
  addresses.reserve(pointers.size());
  for (const py::object& value : values) handed.push_back(value.ptr());
  handed[STREAM] = stream.ptr();
  for (const auto& [at, source, offset] : pointers) {
    addresses.push_back(py::int_(reinterpret_cast<int64_t>(tensors[source].data_ptr()) + offset));
    handed[at] = addresses.back().ptr();
  }
  PyObject* result = PyObject_Vectorcall(run.ptr(), handed.data(), handed.size(), nullptr);
  if (!result) throw py::error_already_set();
  Py_DECREF(result);
}

py::object replay(const Plan& plan, Operands& operands) {
  const auto& [all_made, launches, returned, alone] = plan;
  std::vector<at::Tensor>& tensors = operands.tensors;
  const auto place = at::TensorOptions().device(at::kCUDA, operands.device);
  {
    py::gil_scoped_release released;
    for (const auto& [shape, stride, dtype] : all_made) {
      tensors.push_back(at::empty_strided(shape, stride, place.dtype(dtype)));
    }
  }
  const py::object stream = stream_of(operands.device);
  for (const Launch& launch : launches) start(launch, tensors, stream);
  py::tuple results(returned.size());
  for (size_t i = 0; i < returned.size(); ++i) {
    const auto& [source, shape] = returned[i];
    const at::Tensor result = shape ? tensors[source].view(*shape) : tensors[source];
    results[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(result));
  }
  return alone ? py::object(results[0]) : results;
}

struct KindHash {
  size_t operator()(const Kind& kind) const {
    uint64_t hash = 0xcbf29ce484222325;
    for (const int64_t x : kind) {
      hash = (hash ^ static_cast<uint64_t>(x)) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

class Plans {
 public:
  py::object call(const py::args& given) {
    if (paused) return py::bool_(false);
    Operands operands = operands_of(given);
    if (!operands.served || operands.device != current_device() || hooked()) return py::bool_(false);
    const auto found = plans_.find(operands.kind);
    if (found == plans_.end()) return py::none();
    const std::shared_ptr<const Plan> plan = found->second;  // which another thread may have cleared meanwhile
    return plan ? replay(*plan, operands) : py::bool_(false);
  }

  void keep(const py::tuple& given, std::optional<Plan> plan) {
    const Operands operands = operands_of(given);
    if (operands.served) plans_[operands.kind] = plan ? std::make_shared<const Plan>(std::move(*plan)) : nullptr;
  }

  void clear() { plans_.clear(); }
  size_t size() const { return plans_.size(); }

 private:
  std::unordered_map<Kind, std::shared_ptr<const Plan>, KindHash> plans_;
};

}  // namespace

PYBIND11_MODULE(_again, module) {
  module.doc() = "Replays of operators' calls on a GPU.";
  module.attr("SOURCES") = AIM_SOURCES;
  module.attr("TORCH") = TORCH_VERSION;
  py::class_<Plans>(module, "Plans")
      .def(py::init<>())
      .def("__call__", &Plans::call)
      .def("__len__", &Plans::size)
      .def("keep", &Plans::keep)
      .def("clear", &Plans::clear);
  module.def("pause", [](int by) { paused += by; });
  module.def("begin", [](py::object tensor, py::object parameter, py::object dtype, py::object runtime, py::object of) {
    tensor_type = tensor.release();  // these live as long as the process
    parameter_type = parameter.release();
    dtype_type = dtype.release();
    hooks = runtime.release();
    stream_of = of.release();
  });
}
