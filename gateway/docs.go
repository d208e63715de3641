package gateway

import (
	"net/http"

	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"

	"github.com/cohortbridge/cohortbridge/gen"
)

// docs serves the OpenAPI document and a page to read and try it.
func docs(mux *http.ServeMux) {
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(gen.OpenAPI) // the client went away
	})
	page := v5emb.NewHandlerWithConfig(swgui.Config{Title: "cohortbridge API", SwaggerJSON: "/openapi.json", BasePath: "/docs/", HideCurl: true})
	mux.Handle("GET /docs/", page)
	mux.Handle("GET /docs", http.RedirectHandler("/docs/", http.StatusMovedPermanently))
	mux.Handle("GET /{$}", http.RedirectHandler("/docs/", http.StatusFound))
}
