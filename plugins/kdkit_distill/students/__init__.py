"""Students: given, made out of the teacher, or from a catalogue of light nets."""
