"""Students: given by name, made of a net's own layers, narrower, or from a catalogue of light nets."""
