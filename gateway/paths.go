package gateway

import (
	"net/http"
	"net/url"
	"path"
	"strings"
)

// cleaned serves a path with doubled slashes or dots as the path that it means: a
// host with a slash at its end makes //track/ of /track/. The router would answer
// with a redirect, which no sender of events follows with its body.
func cleaned(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		was := r.URL.EscapedPath()
		is := cleanPath(was)
		plain, err := url.PathUnescape(is)
		if is == was || err != nil {
			next.ServeHTTP(w, r)
			return
		}
		r2, u := *r, *r.URL
		u.Path, u.RawPath = plain, is
		r2.URL = &u
		next.ServeHTTP(w, &r2)
	})
}

// cleanPath is a path as the router wants it; a slash at its end stays.
func cleanPath(p string) string {
	is := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && is != "/" {
		is += "/"
	}
	return is
}

// unknownReadable lets pages of other sites read that there is no such path or
// method, as they read every answer of Mixpanel's routes. What is there decides for
// itself who may read it.
func unknownReadable(mux *http.ServeMux) http.Handler {
	unknown := cors(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern == "" {
			unknown.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}
