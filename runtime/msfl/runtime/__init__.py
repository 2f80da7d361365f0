"""Start, watch, stop and recover the contained processes (workers, aggregators); collect what they leave, safely."""
