"""Students: a model of the session, a copy of the teacher with fewer layers or smaller widths, or a light net of the catalogue."""
