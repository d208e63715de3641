package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// mixpanelRoutes serves the ingestion endpoints of Mixpanel's HTTP API, with and
// without a trailing slash (https://developer.mixpanel.com/reference/overview).
func mixpanelRoutes(mux *http.ServeMux, client ingestionv1.IngestionServiceClient, maxBody int64) {
	for path, endpoint := range map[string]ingestionv1.IngestRawRequest_Endpoint{
		"/track":  ingestionv1.IngestRawRequest_ENDPOINT_TRACK,
		"/import": ingestionv1.IngestRawRequest_ENDPOINT_IMPORT,
		"/engage": ingestionv1.IngestRawRequest_ENDPOINT_ENGAGE,
		"/groups": ingestionv1.IngestRawRequest_ENDPOINT_GROUPS,
	} {
		h := &ingestHandler{client: client, endpoint: endpoint, maxBody: maxBody}
		mux.Handle(path, cors(h))
		mux.Handle(path+"/{$}", cors(h))
	}
}

type ingestHandler struct {
	client   ingestionv1.IngestionServiceClient
	endpoint ingestionv1.IngestRawRequest_Endpoint
	maxBody  int64
}

// ServeHTTP hands the request on as it came and writes the answer ingestion made.
func (h *ingestHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST, OPTIONS")
		mixpanelError(w, http.StatusMethodNotAllowed, "use GET or POST")
		return
	}
	body, err := readBody(w, r, h.maxBody)
	if err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			mixpanelError(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("request exceeds max limit of %d bytes", h.maxBody))
			return
		}
		mixpanelError(w, http.StatusBadRequest, "the request body broke off")
		return
	}
	ip, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		ip = ""
	}
	resp, err := h.client.IngestRaw(r.Context(), &ingestionv1.IngestRawRequest{
		Endpoint: h.endpoint, Method: r.Method, ContentType: r.Header.Get("Content-Type"), ContentEncoding: r.Header.Get("Content-Encoding"),
		RawQuery: r.URL.RawQuery, Authorization: r.Header.Get("Authorization"), ClientIp: ip, Host: r.Host, Body: body,
	})
	if err != nil {
		ingestError(w, err)
		return
	}
	for k, v := range resp.GetHeaders() {
		w.Header().Set(k, v)
	}
	if ct := resp.GetContentType(); ct != "" {
		w.Header().Set("Content-Type", ct)
	}
	w.WriteHeader(int(resp.GetStatus()))
	_, _ = w.Write(resp.GetBody()) // the client went away
}

// readBody reads a body into one slice of the announced size, so that a batch is
// not copied while it grows.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	src := http.MaxBytesReader(w, r.Body, limit)
	if r.ContentLength < 0 {
		return io.ReadAll(src)
	}
	buf := make([]byte, r.ContentLength)
	_, err := io.ReadFull(src, buf)
	return buf, err
}

// ingestError answers when the RPC itself failed: nothing was acknowledged, and
// Mixpanel's clients come back on 429 and 5xx.
func ingestError(w http.ResponseWriter, err error) {
	switch status.Code(err) {
	case codes.ResourceExhausted:
		w.Header().Set("Retry-After", "1")
		mixpanelError(w, http.StatusTooManyRequests, "Project exceeded rate limits. Please retry the request with exponential backoff.")
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		w.Header().Set("Retry-After", "1")
		mixpanelError(w, http.StatusServiceUnavailable, "ingestion is not available; retry")
	default:
		mixpanelError(w, http.StatusInternalServerError, status.Convert(err).Message())
	}
}

func mixpanelError(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, `{"code":%d,"error":%q,"status":%q}`, code, text, http.StatusText(code)) // the client went away
}

// cors answers as the browser SDK needs: it sends credentials, so the origin is
// echoed and never "*" (a refused answer makes it drop its queue for good).
func cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if origin := r.Header.Get("Origin"); origin != "" {
			h := w.Header()
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Credentials", "true")
			h.Add("Vary", "Origin")
			if r.Method == http.MethodOptions {
				h.Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
				h.Set("Access-Control-Max-Age", "86400")
				if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
					h.Set("Access-Control-Allow-Headers", asked)
					h.Add("Vary", "Access-Control-Request-Headers")
				}
			}
		}
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}
