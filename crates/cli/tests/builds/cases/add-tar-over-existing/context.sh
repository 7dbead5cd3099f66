mkdir -p t/etc t/srv; echo new >t/etc/passwd; chmod 700 t/srv; touch -d @20 t/etc/passwd t/etc t/srv; tar --owner=33 --group=33 --sort=name -C t -cf a.tar etc srv; rm -r t
