echo a >target; mkdir dir; ln -s ../target dir/inner; ln -s target link; ln -s dir dlink; touch -h -d @7 link dlink dir/inner; touch -d @8 dir
