"""The zoo that ships with the kit, under the name by which the tests know it."""

from kdkit.testing.zoo import *  # noqa: F403
