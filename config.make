# appended to the Makefile that nginx's configure writes: the module, or nginx
# itself when the module is linked in, needs libsd.a

if test -z "$SD_LIB"; then

    case "$NGX_OBJS" in
        /*) sd_build=$NGX_OBJS/sd ;;
        *)  sd_build=`pwd`/$NGX_OBJS/sd ;;
    esac

    cat << END                                                >> $NGX_MAKEFILE

.PHONY: sd_lib
$NGX_OBJS/sd/libsd.a:	sd_lib
sd_lib:
	env -u CFLAGS \$(MAKE) -C $ngx_addon_dir BUILD=$sd_build lib

END

fi

cat << END                                                    >> $NGX_MAKEFILE

$NGX_OBJS/ngx_http_sd_module.so:	${SD_LIB:-$NGX_OBJS/sd/libsd.a}
$NGX_OBJS${ngx_dirsep}nginx:	${SD_LIB:-$NGX_OBJS/sd/libsd.a}

END
