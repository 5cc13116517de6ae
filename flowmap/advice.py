"""Advice: what to pass in place of an object that flowmap cannot take, by its class.

Classes are recognised by their names, so that none of these libraries is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_BY_NAME: Final = "Pass its name, and let the filler look it up or import it."
_NUMBERS_AND_UNIT: Final = (
    "Pass its numbers and the name of its unit: {x}.value, str({x}.unit)."
)
_SEED: Final = "Pass a seed, and make the generator in the filler, from it and block.start."
_PATH: Final = "Pass the path of its file, and open it in the filler."
_AS_LIST: Final = "Pass list({x})."
_AS_BYTES: Final = "Pass bytes({x})."

ON_ARGUMENTS: Final[Mapping[str, str]] = {
    "": (
        "Pass what it is made of: numbers, texts, lists, dicts, NumPy arrays, or a dataclass "
        "of these; or the path of a file that the filler reads. Only if it does not change the "
        "values, as a logger, declare it volatile: @flowmap.filler(volatile=(...,))."
    ),
    "_io": _PATH,
    "_thread": "Make it in the filler, or in the filler's module.",
    "argparse.Namespace": "Pass vars({x}).",
    "array.array": "Pass np.array({x}).",
    "astropy.Quantity": _NUMBERS_AND_UNIT,
    "astropy.UnitBase": "Pass its name, str({x}).",
    "astropy": "Pass its numbers, and what else it holds, as arguments of their own.",
    "attr": "Pass attrs.asdict({x}).",
    "builtins.builtin_function_or_method": _BY_NAME,
    "builtins.bytearray": _AS_BYTES,
    "builtins.dict_items": _AS_LIST,
    "builtins.dict_keys": _AS_LIST,
    "builtins.dict_values": _AS_LIST,
    "builtins.function": _BY_NAME,
    "builtins.generator": _AS_LIST,
    "builtins.mappingproxy": "Pass dict({x}).",
    "builtins.memoryview": _AS_BYTES,
    "builtins.method": _BY_NAME,
    "builtins.module": _BY_NAME,
    "builtins.type": _BY_NAME,
    "collections.ChainMap": "Pass dict({x}).",
    "collections.deque": _AS_LIST,
    "collections.UserDict": "Pass dict({x}).",
    "collections.UserList": _AS_LIST,
    "cupy.ndarray": "Pass {x}.get().",
    "dask": "Pass {x}.compute(), or the path of its file.",
    "datetime.tzinfo": "Use datetime.UTC or a zoneinfo.ZoneInfo in its place.",
    "flowmap.Target": "Pass its path, {x}.path.",
    "functools.partial": _BY_NAME,
    "h5py": "Pass the path of its file and the name of the data set; open it in the filler.",
    "jax": "Pass np.asarray({x}).",
    "jaxlib": "Pass np.asarray({x}).",
    "logging.Logger": "Declare it volatile: @flowmap.filler(volatile=(...,)).",
    "netCDF4": _PATH,
    "numpy.BitGenerator": _SEED,
    "numpy.Generator": _SEED,
    "numpy.MaskedArray": "Pass {x}.data and {x}.mask as two arguments.",
    "numpy.RandomState": _SEED,
    "numpy.SeedSequence": "Pass {x}.entropy and {x}.spawn_key.",
    "numpy.generic": "Pass a plain number, {x}.item().",
    "numpy.ndarray": (
        "It is more than its numbers. Pass np.asarray({x}), and what else it holds, as a unit, "
        "as arguments of their own."
    ),
    "numpy.ufunc": _BY_NAME,
    "omegaconf": "Pass OmegaConf.to_container({x}).",
    "pandas.Interval": "Pass {x}.left, {x}.right and {x}.closed.",
    "pandas.NAType": "Pass None.",
    "pandas.NaTType": "Pass None.",
    "pandas.Period": "Pass str({x}) and {x}.freqstr.",
    "pandas.Timedelta": "Pass {x}.to_timedelta64().",
    "pandas.Timestamp": "Pass {x}.to_datetime64().",
    "pandas": "Pass its numbers, {x}.to_numpy(), or the path of its file.",
    "pathlib.PurePath": "Pass its text, os.fspath({x}).",
    "pendulum": "Pass {x}.isoformat().",
    "pint": "Pass its numbers and the name of its unit: {x}.magnitude, str({x}.units).",
    "polars": "Pass its numbers, {x}.to_numpy(), or the path of its file.",
    "posix.DirEntry": "Pass {x}.path.",
    "py": "Pass pathlib.Path({x}).",
    "pyarrow": "Pass its numbers, {x}.to_numpy(), or the path of its file.",
    "pydantic.BaseModel": "Pass {x}.model_dump().",
    "random.Random": _SEED,
    "re.Pattern": "Pass {x}.pattern.",
    "ruamel": "Pass plain dicts and lists: YAML(typ='safe') loads these.",
    "scipy": "Pass the arrays that it is made of: {x}.data, {x}.indices, {x}.indptr.",
    "sklearn": "Pass the path of its file, written by joblib.dump, and load it in the filler.",
    "tensorflow": "Pass {x}.numpy().",
    "torch.Module": "Pass the path of its weights, and load them in the filler.",
    "torch.Tensor": "Pass {x}.numpy(force=True).",
    "torch": "Pass its name, str({x}).",
    "types.SimpleNamespace": "Pass vars({x}).",
    "unyt.Unit": "Pass its name, str({x}).",
    "unyt": "Pass its numbers and the name of its unit: {x}.value, str({x}.units).",
    "upath": "Pass str({x}).",
    "xarray": "Pass its numbers, {x}.to_numpy(), or the path of its file.",
    "zarr": "Pass the path of its store, and open it in the filler.",
}
"""By "package.Class", or by the package for all its classes; "" for any other.

{x} stands for the object, as the caller's code names it.
"""

_COMPILED: Final = (
    "It cannot take a Block. Wrap it: def fill(out, block): {x}(out, block.start)."
)
_NEW_ARRAYS: Final = "It returns new arrays. Wrap it: def fill(out, block): out[:] = {x}(...)."
_TENSORS: Final = (
    "It returns tensors. Wrap it: def fill(out, block): out[:] = {x}(...).numpy()."
)
_CALLED_LATER: Final = "A call of it computes nothing yet. Pass the plain function."

ON_FILLERS: Final[Mapping[str, str]] = {
    "dask.Delayed": _CALLED_LATER,
    "functools._lru_cache_wrapper": (
        "It would not fill again what it has filled. Pass the plain function, {x}.__wrapped__."
    ),
    "jax": _COMPILED,
    "jaxlib": _NEW_ARRAYS,
    "joblib.MemorizedFunc": (
        "It would not fill again what it has filled. Pass the plain function, {x}.func."
    ),
    "numba.DUFunc": _NEW_ARRAYS,
    "numba": _COMPILED,
    "numpy.ufunc": _NEW_ARRAYS,
    "numpy.vectorize": _NEW_ARRAYS,
    "prefect.Flow": "Each block would be a flow run. Pass the plain function, {x}.fn.",
    "prefect.Task": "Each block would be a task run. Pass the plain function, {x}.fn.",
    "ray": _CALLED_LATER,
    "tensorflow": _TENSORS,
    "torch.ScriptFunction": _TENSORS,
}
"""Likewise, of what can be called but is not a filler."""


def advice_on(value: Any, name: str, table: Mapping[str, str]) -> str:
    """Return the advice on the class of an object, or on the nearest class above it.

    Args:
        value: The object.
        name: How the advice names it.
        table: `ON_ARGUMENTS` or `ON_FILLERS`.
    """
    for each in type(value).__mro__[:-1]:
        package = each.__module__.partition(".")[0]
        for key in (f"{package}.{each.__name__}", package):
            if key in table:
                return table[key].replace("{x}", name)
    return table.get("", "")
