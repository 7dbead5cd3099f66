echo same >a-1; echo same >a-2
