echo not a tar >fake.tar.gz; cp fake.tar.gz fake.tar
