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
	"github.com/cohortbridge/cohortbridge/platform/inflight"
)

// mixpanelRoutes serves the ingestion endpoints of Mixpanel's HTTP API, with and
// without a trailing slash (https://developer.mixpanel.com/reference/overview).
func mixpanelRoutes(mux *http.ServeMux, client ingestionv1.IngestionServiceClient, cfg *Config, gate *inflight.Gate) {
	for path, endpoint := range map[string]ingestionv1.IngestRawRequest_Endpoint{
		"/track":  ingestionv1.IngestRawRequest_ENDPOINT_TRACK,
		"/import": ingestionv1.IngestRawRequest_ENDPOINT_IMPORT,
		"/engage": ingestionv1.IngestRawRequest_ENDPOINT_ENGAGE,
		"/groups": ingestionv1.IngestRawRequest_ENDPOINT_GROUPS,
	} {
		h := &ingestHandler{client: client, endpoint: endpoint, cfg: cfg, gate: gate}
		mux.Handle(path, cors(h))
		mux.Handle(path+"/{$}", cors(h))
	}
}

type ingestHandler struct {
	client   ingestionv1.IngestionServiceClient
	endpoint ingestionv1.IngestRawRequest_Endpoint
	cfg      *Config
	gate     *inflight.Gate
}

// ServeHTTP hands the request on as it came and writes the answer ingestion made.
func (h *ingestHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST, OPTIONS")
		mixpanelError(w, http.StatusMethodNotAllowed, "use GET or POST")
		return
	}
	room, ok := h.gate.Enter(0)
	if !ok {
		retry(w, http.StatusTooManyRequests, busy)
		return
	}
	defer room.Leave()
	body, ok := h.readBody(w, r, room)
	if !ok {
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
	w.Header().Set("Cache-Control", "no-store") // an event in a GET must reach us every time
	for k, v := range resp.GetHeaders() {
		w.Header().Set(k, v)
	}
	if ct := resp.GetContentType(); ct != "" {
		w.Header().Set("Content-Type", ct)
	}
	w.WriteHeader(int(resp.GetStatus()))
	_, _ = w.Write(resp.GetBody()) // the client went away
}

// readBody reads the body within the limits, or answers. The room grows before
// the memory does, as the bytes arrive: who announces much and sends little
// takes little.
func (h *ingestHandler) readBody(w http.ResponseWriter, r *http.Request, room *inflight.Ticket) ([]byte, bool) {
	limit := h.cfg.MaxBodyBytes
	if r.ContentLength > limit {
		mixpanelError(w, http.StatusRequestEntityTooLarge, tooLarge(limit))
		return nil, false
	}
	if r.ContentLength == 0 {
		return nil, true
	}
	src := http.MaxBytesReader(w, r.Body, limit)
	var body []byte
	var err error
	for size := int64(firstRead); err == nil; size *= 4 {
		// One byte more than is expected sees the end of the body in the same step.
		if size = min(size, limit+1); r.ContentLength > 0 {
			size = min(size, r.ContentLength+1)
		}
		if !room.Grow(size - int64(cap(body))) {
			retry(w, http.StatusTooManyRequests, busy)
			return nil, false
		}
		body = append(make([]byte, 0, size), body...)
		for err == nil && len(body) < cap(body) {
			var n int
			n, err = src.Read(body[len(body):cap(body)])
			body = body[:len(body)+n]
		}
	}
	if errors.Is(err, io.EOF) {
		return body, true
	}
	switch code, text := bodyProblem(err); code {
	case http.StatusServiceUnavailable:
		retry(w, code, text)
	default:
		mixpanelError(w, code, text)
	}
	return nil, false
}

// firstRead is how much of a body is read before it is believed that more comes.
// An ordinary compressed batch fits, so that it is not copied while it grows.
const firstRead = 256 << 10

const (
	// tooMany is Mixpanel's text for a project that asks too often.
	tooMany = "Project exceeded rate limits. Please retry the request with exponential backoff."
	// busy is for what no project can help: all of them together are too many.
	busy = "The server is busy with too many requests. Please retry the request with exponential backoff."
)

// retry answers that the sender should come back.
func retry(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Retry-After", "1")
	mixpanelError(w, code, text)
}

// ingestError answers when the RPC itself failed: nothing was acknowledged, and
// Mixpanel's clients come back on 429 and 5xx.
func ingestError(w http.ResponseWriter, err error) {
	switch status.Code(err) {
	case codes.ResourceExhausted:
		retry(w, http.StatusTooManyRequests, busy)
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		retry(w, http.StatusServiceUnavailable, "ingestion is not available; retry")
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
