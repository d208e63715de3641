package gateway

import (
	"net/http"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// traced starts a server span for each request and answers with its trace id.
// It is not otelhttp because that records the client's address, which is
// personal data.
func traced(next http.Handler) http.Handler {
	tracer := otel.Tracer("github.com/cohortbridge/cohortbridge/gateway")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			next.ServeHTTP(w, r)
			return
		}
		ctx := otel.GetTextMapPropagator().Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := tracer.Start(ctx, r.Method+" "+route(r.URL.Path), trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(attribute.String("http.request.method", r.Method), attribute.String("http.route", route(r.URL.Path))))
		defer span.End()
		w.Header().Set("X-Trace-Id", span.SpanContext().TraceID().String())
		rec := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(rec, r.WithContext(ctx))
		span.SetAttributes(attribute.Int("http.response.status_code", rec.status))
		if rec.status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, http.StatusText(rec.status))
		}
	})
}

// known are the first parts of the paths that are served.
var known = map[string]bool{"v1": true, "track": true, "import": true, "engage": true, "groups": true, "api": true, "docs": true, "openapi.json": true, "": true}

// route is the path with ids replaced, so that names stay few: of
// /v1/projects/7/syncs/3:run it makes /v1/projects/{id}/syncs/{id}:run.
func route(path string) string {
	parts := strings.Split(path, "/")
	if !known[parts[min(1, len(parts)-1)]] {
		return "other" // what a stranger typed may hold anything
	}
	for i, p := range parts {
		id, verb, has := strings.Cut(p, ":")
		if id == "" || strings.Trim(id, "0123456789") != "" {
			continue
		}
		parts[i] = "{id}"
		if has {
			parts[i] += ":" + verb
		}
	}
	if len(parts) > 12 {
		parts = parts[:12] // nothing of ours is that deep
	}
	return strings.Join(parts, "/")
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers the status.
func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Flush lets streams through.
func (r *statusRecorder) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
