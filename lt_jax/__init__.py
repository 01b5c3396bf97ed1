"""Long-tailed recognition in JAX: decoupled training and classifier re-training.

The way of the data: ``data`` makes a long-tailed task, ``samplers`` plan an order,
``steps`` run ``models`` and ``heads`` on the devices under ``losses``, ``metrics`` add
up, ``methods`` say what differs, ``loop`` repeats, ``train`` makes commands of it.
"""

__version__ = "0.1.0"
