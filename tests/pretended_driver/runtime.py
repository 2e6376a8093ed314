"""The functions of the CUDA runtime that CuPy calls, and those of the driver that need Python, over a Machine.

Each function has the types of its C arguments. It returns None for success, or raises CudaError. The machine's lock is
held meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import machine as m
from .kernels import Kernels
from .machine import CudaError, Machine

P, Z, N, U, L = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint, ctypes.c_ulonglong
TO_DEVICE, FROM_DEVICE, WITHIN_DEVICE, DEFAULT = 1, 2, 3, 4  # kinds of cudaMemcpy
NOT_REGISTERED, PINNED, ON_DEVICE = 0, 1, 2  # types of memory
# Offsets in cudaDeviceProp of CUDA 12.
_NAME, _TOTAL, _WARP, _THREADS, _MAJOR, _MINOR, _MULTIPROCESSORS, _L2_CACHE = 0, 288, 308, 320, 360, 364, 388, 616
_PROPERTIES_BYTES = 1032
_ATTRIBUTE_MULTIPROCESSORS, _ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 16, 75, 76

_SIGNALS = (signal.SIGINT, signal.SIGALRM)

Function = Callable[..., None]


def put(address: int, kind: Any, value: int) -> None:
    """Write a number of a C type."""
    kind.from_address(address).value = value


class Runtime:
    """The functions, by their names in C. The library has what they need in C."""

    def __init__(self, machine: Machine, kernels: Kernels, library: Any) -> None:
        self.machine, self.kernels, self._library = machine, kernels, library
        self.functions: dict[str, tuple[Sequence[Any], Function]] = {}
        for define in (_devices, _memory, _copies, _streams, _captures, _events, _modules):
            define(self)

    def define(self, *types: Any) -> Callable[[Function], Function]:
        """Add a function of these argument types under its own name."""

        def add(function: Function) -> Function:
            self.functions[function.__name__] = (types, function)
            return function

        return add

    def callback(self, name: str) -> Any:
        """Return the function as C can call it: with a status as its result."""
        types, function = self.functions[name]
        return ctypes.CFUNCTYPE(N, *types)(self.guarded(name, function))

    def guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., int]:
        """Return a function that gives a status, and holds the lock meanwhile."""
        machine = self.machine

        def call(*arguments: Any) -> int:
            with machine.lock, self._signals_later():
                machine.calls[name] = machine.calls.get(name, 0) + 1
                status = m.SUCCESS
                try:
                    function(*(0 if argument is None else argument for argument in arguments))
                except CudaError as error:
                    status = error.status
                except Exception as error:  # nothing of Python may go through C
                    machine.finding(f"{name} failed: {error!r}")
                    status = m.LAUNCH_FAILURE
                self._library.pretended_finish(status)
            return status

        return call

    @contextmanager
    def _signals_later(self) -> Iterator[None]:
        """Python's handlers of signals run after the call, as they do when CUDA is written in C."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        late: list[int] = []
        before = {number: signal.signal(number, lambda number, _: late.append(number)) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            for number in late:
                self._library.pretended_raise_later(number)


def _devices(runtime: Runtime) -> None:
    machine, define = runtime.machine, runtime.define

    @define(P)
    def cudaGetDeviceCount(count: int) -> None:
        put(count, N, machine.settings.n_devices)
        if not machine.settings.n_devices:
            raise CudaError(m.INSUFFICIENT_DRIVER)

    @define(P)
    def cudaGetDevice(device: int) -> None:
        put(device, N, machine.current)

    @define(N)
    def cudaSetDevice(device: int) -> None:
        machine.current = device

    @define(P, P)
    def cudaMemGetInfo(free: int, total: int) -> None:
        if machine.settings.memory_queries_break_captures:
            machine.unsafe("asking for the free memory")
        put(free, Z, machine.free_bytes(machine.current))
        put(total, Z, machine.settings.total_bytes)

    @define(P, N)
    def cudaGetDeviceProperties_v2(properties: int, device: int) -> None:
        if not 0 <= device < max(1, machine.settings.n_devices):
            raise CudaError(m.INVALID_DEVICE)
        settings, _ = machine.settings, machine.current
        ctypes.memset(properties, 0, _PROPERTIES_BYTES)
        name = settings.name.encode() + b"\0"
        ctypes.memmove(properties + _NAME, name, len(name))
        put(properties + _TOTAL, Z, settings.total_bytes)
        for at, value in ((_WARP, 32), (_THREADS, 1024), (_MULTIPROCESSORS, settings.n_multiprocessors),
                          (_L2_CACHE, settings.l2_bytes),
                          (_MAJOR, settings.capability[0]), (_MINOR, settings.capability[1])):  # fmt: skip
            put(properties + at, N, value)

    @define(P, N, N)
    def cudaDeviceGetAttribute(value: int, attribute: int, device: int) -> None:
        settings, _ = machine.settings, machine.current
        known = {_ATTRIBUTE_MULTIPROCESSORS: settings.n_multiprocessors, _ATTRIBUTE_MAJOR: settings.capability[0],
                 _ATTRIBUTE_MINOR: settings.capability[1]}  # fmt: skip
        put(value, N, known.get(attribute, 0))

    @define()
    def cudaDeviceSynchronize() -> None:
        machine.unsafe("waiting for the device")
        machine.run_all(machine.current)

    @define(P)
    def cudaDriverGetVersion(version: int) -> None:
        put(version, N, 12090 if machine.settings.n_devices else 0)

    @define(P)
    def cudaRuntimeGetVersion(version: int) -> None:
        put(version, N, 12090)

    @define()
    def cudaGetLastError() -> None:
        """Statuses are not kept."""


def _memory(runtime: Runtime) -> None:
    machine, define = runtime.machine, runtime.define

    @define(P, Z)
    def cudaMalloc(address: int, n_bytes: int) -> None:
        put(address, P, machine.allocate(n_bytes))

    @define(P)
    def cudaFree(address: int) -> None:
        machine.free(address)

    @define(P, Z, U)
    def cudaHostAlloc(address: int, n_bytes: int, flags: int) -> None:
        machine.unsafe("an allocation of pinned memory")
        put(address, P, machine.pinned.new(None, n_bytes).address)

    @define(P)
    def cudaFreeHost(address: int) -> None:
        machine.unsafe("freeing pinned memory")
        machine.run_all()
        machine.pinned.drop(address)

    @define(P, P)
    def cudaPointerGetAttributes(attributes: int, address: int) -> None:
        found = machine.memory.at(address)
        ctypes.memset(attributes, 0, 32)
        put(attributes, N, ON_DEVICE if found else PINNED if machine.pinned.at(address) else NOT_REGISTERED)
        put(attributes + 4, N, found.device if found and found.device is not None else 0)


def _copies(runtime: Runtime) -> None:
    machine, define = runtime.machine, runtime.define

    def expect(what: str, address: int, n_bytes: int) -> None:
        if machine.memory.at(address, n_bytes) is None:
            machine.finding(f"{what} of {n_bytes} bytes goes beyond an allocation of the device")
            raise CudaError(m.INVALID_VALUE)

    def from_host(target: int, source: int, n_bytes: int) -> Callable[[], None]:
        """A copy that reads the host's memory late, if the GPU would."""
        expected, pinned = ctypes.string_at(source, n_bytes), machine.pinned.at(source, n_bytes) is not None
        late = pinned or machine.settings.late_host_reads

        def copy() -> None:
            data = read_memory(source, n_bytes) if late else expected
            if data != expected:
                kind = "pinned" if pinned else "pageable"
                machine.finding(f"{kind} memory of the host was written or freed before {n_bytes} bytes were copied")
            ctypes.memmove(target, data or expected, n_bytes)

        return copy

    def to_host(target: int, source: int, n_bytes: int) -> Callable[[], None]:
        ctypes.memset(target, m.POISON, n_bytes)  # nobody may look at it before the work is waited for
        return lambda: _move(target, source, n_bytes)

    def copy(target: int, source: int, n_bytes: int, kind: int, handle: int) -> None:
        stream = machine.stream(handle)
        if kind == DEFAULT:
            on_device = machine.memory.at(target) is not None, machine.memory.at(source) is not None
            kind = {(True, False): TO_DEVICE, (False, True): FROM_DEVICE}.get(on_device, WITHIN_DEVICE)
        if not n_bytes:
            return
        if kind != FROM_DEVICE:
            expect("a copy to the device", target, n_bytes)
        if kind != TO_DEVICE:
            expect("a copy from the device", source, n_bytes)
        if kind == TO_DEVICE:
            machine.copies.append(("to", n_bytes))
            work = from_host(target, source, n_bytes)
        elif kind == FROM_DEVICE:
            machine.copies.append(("from", n_bytes))
            work = to_host(target, source, n_bytes)
        else:
            work = functools.partial(_move, target, source, n_bytes)
        machine.submit(stream, "a copy", work)
        is_pageable = kind == FROM_DEVICE and machine.pinned.at(target, n_bytes) is None
        if is_pageable and not machine.settings.late_host_reads:
            machine.unsafe("a copy to pageable memory")
            stream.run()

    @define(P, P, Z, N, P)
    def cudaMemcpyAsync(target: int, source: int, n_bytes: int, kind: int, stream: int) -> None:
        copy(target, source, n_bytes, kind, stream)

    @define(P, P, Z, N)
    def cudaMemcpy(target: int, source: int, n_bytes: int, kind: int) -> None:
        machine.unsafe("a copy that waits")
        copy(target, source, n_bytes, kind, 0)
        machine.stream(0).run()

    def fill(address: int, value: int, n_bytes: int, handle: int) -> None:
        expect("filling", address, n_bytes)
        machine.submit(machine.stream(handle), "filling", lambda: _fill(address, value, n_bytes))

    @define(P, N, Z, P)
    def cudaMemsetAsync(address: int, value: int, n_bytes: int, stream: int) -> None:
        fill(address, value, n_bytes, stream)

    @define(P, N, Z)
    def cudaMemset(address: int, value: int, n_bytes: int) -> None:
        machine.unsafe("filling memory at once")
        fill(address, value, n_bytes, 0)


def _streams(runtime: Runtime) -> None:
    machine, define = runtime.machine, runtime.define

    @define(P, U, N)
    def cudaStreamCreateWithPriority(stream: int, flags: int, priority: int) -> None:
        put(stream, P, machine.new_stream(blocking=not flags & 1))

    @define(P, U)
    def cudaStreamCreateWithFlags(stream: int, flags: int) -> None:
        put(stream, P, machine.new_stream(blocking=not flags & 1))

    @define(P)
    def cudaStreamDestroy(handle: int) -> None:
        stream = machine.stream(handle)
        stream.run()
        del machine.streams[stream.device, handle]

    @define(P)
    def cudaStreamSynchronize(handle: int) -> None:
        if handle in machine.captures:
            machine.break_captures("waiting for the stream", [machine.captures[handle]])
            raise CudaError(m.CAPTURE_UNSUPPORTED)
        machine.stream(handle).run()

    @define(P)
    def cudaStreamQuery(handle: int) -> None:
        cudaStreamSynchronize(handle)

    @define(P, P, U)
    def cudaStreamWaitEvent(handle: int, event: int, flags: int) -> None:
        if event in machine.events:
            stream, number = machine.events[event]
            machine.submit(machine.stream(handle), "waiting for an event", lambda: stream.run(number))


def _captures(runtime: Runtime) -> None:
    machine, define = runtime.machine, runtime.define

    @define(P, N)
    def cudaStreamBeginCapture(handle: int, mode: int) -> None:
        machine.begin_capture(machine.stream(handle), mode)

    @define(P, P)
    def cudaStreamEndCapture(handle: int, graph: int) -> None:
        put(graph, P, 0)
        put(graph, P, machine.end_capture(machine.stream(handle)))

    @define(P, P)
    def cudaStreamIsCapturing(handle: int, status: int) -> None:
        capture = machine.captures.get(handle) if handle else None
        put(status, N, 0 if capture is None else 2 if capture.broken else 1)

    @define(P, P, L)
    def cudaGraphInstantiate(instance: int, graph: int, flags: int) -> None:
        put(instance, P, machine.instantiate(graph))

    @define(P, P)
    def cudaGraphLaunch(instance: int, handle: int) -> None:
        machine.launch_graph(instance, machine.stream(handle))

    @define(P, P)
    def cudaGraphUpload(instance: int, handle: int) -> None:
        """Does nothing."""

    @define(P)
    def cudaGraphDestroy(graph: int) -> None:
        machine.graphs.pop(graph, None)

    @define(P)
    def cudaGraphExecDestroy(instance: int) -> None:
        machine.run_all()
        machine.destroy_instance(instance)


def _events(runtime: Runtime) -> None:
    machine, define = runtime.machine, runtime.define

    @define(P, U)
    def cudaEventCreateWithFlags(event: int, flags: int) -> None:
        put(event, P, machine.new_handle())

    @define(P, P)
    def cudaEventRecord(event: int, handle: int) -> None:
        stream = machine.stream(handle)
        machine.events[event] = (stream, stream.given)

    @define(P)
    def cudaEventSynchronize(event: int) -> None:
        machine.unsafe("waiting for an event")
        if event in machine.events:
            stream, number = machine.events[event]
            stream.run(number)

    @define(P)
    def cudaEventQuery(event: int) -> None:
        cudaEventSynchronize(event)

    @define(P)
    def cudaEventDestroy(event: int) -> None:
        machine.events.pop(event, None)

    @define(P, P, P)
    def cudaEventElapsedTime(milliseconds: int, start: int, end: int) -> None:
        ctypes.c_float.from_address(milliseconds).value = 1.0  # nothing is timed


def _modules(runtime: Runtime) -> None:
    kernels, define = runtime.kernels, runtime.define

    @define(P, P)
    def cuModuleLoadData(module: int, image: int) -> None:
        runtime.machine.unsafe("loading a module")
        put(module, P, kernels.load(ctypes.string_at(image)))

    @define(P)
    def cuModuleUnload(module: int) -> None:
        kernels.unload(module)

    @define(P, P, P)
    def cuModuleGetFunction(function: int, module: int, name: int) -> None:
        put(function, P, kernels.function(module, ctypes.string_at(name).decode()))


def read_memory(address: int, n_bytes: int) -> bytes | None:
    """Return memory of this process. None: it was given back to the system."""
    target = ctypes.create_string_buffer(n_bytes)
    spans = [(P * 2)(ctypes.addressof(target), n_bytes), (P * 2)(address, n_bytes)]
    done = _LIBC.process_vm_readv(os.getpid(), ctypes.byref(spans[0]), 1, ctypes.byref(spans[1]), 1, 0)
    return target.raw if done == n_bytes else None


def _move(target: int, source: int, n_bytes: int) -> None:
    ctypes.memmove(target, source, n_bytes)


def _fill(address: int, value: int, n_bytes: int) -> None:
    ctypes.memset(address, value, n_bytes)


_LIBC = ctypes.CDLL(None, use_errno=True)
