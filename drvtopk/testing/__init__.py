"""For tests of ours and of yours: the oracle, inputs that broke kernels, and problems drawn from a seed.

`oracle` has `topk_reference`, and `faults`, which says what is wrong with a result, a sentence a row. `inputs` has the
named inputs, friendly ones and adversarial ones. `cases` draws shapes, options, layouts and lengths. All is numpy.
"""
