mkdir sub; echo sub >sub/a
