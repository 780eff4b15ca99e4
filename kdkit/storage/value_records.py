"""The tagged forms of values that JSON lacks, field by field: what a file may hold in place of a tuple, a dtype, a tensor or an object."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator

from kdkit.parameters.schema import ClassName, Record

NUMPY = ("<f2", "<f4", "<f8", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<c8", "<c16", "|i1", "|u1", "|b1")
"""The dtypes of numpy's numbers that are stored."""


def check_dtype(name: str) -> str:
    """Check the name of a dtype.

    >>> check_dtype("bfloat16")
    'bfloat16'
    """
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError("this torch has no such dtype")
    return name


DtypeName = Annotated[str, AfterValidator(check_dtype)]


def check_device(name: str) -> str:
    """Check the name of a device.

    >>> check_device("cuda:0")
    'cuda:0'
    """
    try:
        return str(torch.device(name))
    except RuntimeError as error:
        raise ValueError("this torch has no such device") from error


class Items(Record):
    kind: str = Field(alias="$")
    items: list[Any]


class Pairs(Record):
    kind: str = Field(alias="$")
    items: list[Annotated[list[Any], Field(min_length=2, max_length=2)]]


class Float(Record):
    kind: str = Field(alias="$")
    text: Literal["inf", "-inf", "nan"]


class Slice(Record):
    kind: str = Field(alias="$")
    items: Annotated[list[int | None], Field(min_length=3, max_length=3)]


def decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("it is not base64") from error


def _check_base64(text: str) -> str:
    decode_base64(text)
    return text


_Base64 = Annotated[str, AfterValidator(_check_base64)]
_Number = Annotated[str, Field(pattern=r"^-?(inf|nan|\d{1,400}(\.\d{1,400})?(e[+-]?\d{1,4})?)$")]


class Complex(Record):
    kind: str = Field(alias="$")
    parts: Annotated[list[_Number], Field(min_length=2, max_length=2)]


class Bytes(Record):
    kind: str = Field(alias="$")
    base64: _Base64


class Numpy(Bytes):
    dtype: Literal[NUMPY]  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check_size(self) -> Numpy:
        if len(decode_base64(self.base64)) != np.dtype(self.dtype).itemsize:
            raise ValueError(f"a {self.dtype} has {np.dtype(self.dtype).itemsize} bytes")
        return self


class Range(Record):
    kind: str = Field(alias="$")
    items: Annotated[list[Annotated[int, Field(ge=-(2**63), lt=2**63)]], Field(min_length=3, max_length=3)]

    @model_validator(mode="after")
    def _check_step(self) -> Range:
        if not self.items[2]:
            raise ValueError("the step of a range is not 0")
        return self


class Path(Record):
    kind: str = Field(alias="$")
    text: str


class Place(Record):
    kind: str = Field(alias="$")
    place: str


class Named(Record):
    kind: str = Field(alias="$")
    name: str


class Dtype(Record):
    kind: str = Field(alias="$")
    name: DtypeName


class Device(Record):
    kind: str = Field(alias="$")
    name: Annotated[str, AfterValidator(check_device)]


class Tensor(Record):
    kind: str = Field(alias="$")
    name: str
    spec: dict[str, Any] | None = None


class Weak(Record):
    kind: str = Field(alias="$")
    to: dict[str, Any]


class Class(Record):
    kind: str = Field(alias="$")
    path: ClassName = Field(alias="class")


class Member(Class):
    name: str


class Opaque(Class):
    name: str = ""
    holds: str = ""


class Object(Class):
    fields: dict[str, Any]


class Function(Named):
    home: str
