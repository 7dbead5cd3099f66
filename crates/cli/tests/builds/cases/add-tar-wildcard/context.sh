for n in 1 2; do echo $n >f$n; touch -d @20 f$n; tar -cf $n.tar f$n; rm f$n; done
