"""The CNI contract, with older versions converted at the edge."""
