echo root:x:0:0::/:/bin/sh >passwd
