/*
 * Base64 of RFC 4648, section 4, with padding.  No allocation, any thread.
 */

#ifndef SD_BASE64_H
#define SD_BASE64_H

#include <stddef.h>
#include <sys/types.h>


#define sd_base64_encoded_size(n)  (((n) + 2) / 3 * 4)
#define sd_base64_decoded_size(n)  (((n) + 3) / 4 * 3)      /* at most */


/* returns the number of bytes written, sd_base64_encoded_size(n) */
size_t sd_base64_encode(char *dst, const void *src, size_t n);

/*
 * strict but for white space between characters; missing padding is accepted.
 * dst has room for sd_base64_decoded_size(n).  Returns the number of bytes, or
 * SD_ERROR where src is not base64.
 */
ssize_t sd_base64_decode(void *dst, const char *src, size_t n);


#endif
