"""For tests of ours and of yours: the oracle, inputs that broke kernels, and problems drawn from a seed.

`oracle` has `topk_reference`, and `find_errors`, which says what is wrong with a result, a sentence a row. `inputs`
has the named inputs, friendly and adversarial. `cases` draws shapes, options, layouts and lengths. All is numpy.
"""
