"""What every mapping of the manifest is."""

import re

from pydantic import BaseModel, ConfigDict

# What names folders and columns.
SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Section(BaseModel):
    """A mapping of the manifest: unknown keys and numbers that are not finite are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
