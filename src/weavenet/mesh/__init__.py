"""Who is in the mesh and how to reach them."""
