"""A live demonstration: a small meeting pipeline, instrumented and shown in the terminal."""
