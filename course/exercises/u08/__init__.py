"""Unit 08, the roofline: counting FLOPs and bytes, number formats by hand, occupancy, tensor cores in machine code."""
