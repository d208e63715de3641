// Package gateway is the HTTP side of cohortbridge: REST for every public RPC,
// the routes Mixpanel's clients use, and the API's documentation. It holds no
// rules of its own: every request becomes an RPC and passes its interceptors.
package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/inflight"
)

// Config is the limits of the gateway.
type Config struct {
	// MaxBodyBytes bounds a request body as it is sent; default 16 MiB. What a
	// compressed body may grow to is ingestion's limit.
	MaxBodyBytes int64
	// MaxConcurrent bounds the requests on Mixpanel's routes at one time; default
	// 1024, negative is no bound. More are told to come back (429), before their
	// bodies are read.
	MaxConcurrent int
	// MaxInFlightBytes bounds the bodies of these requests together, in bytes as
	// sent; default 64 MiB, negative is no bound.
	MaxInFlightBytes int64
	// BodyTimeout bounds how long the body of any request may take to arrive; default
	// one minute.
	BodyTimeout time.Duration
	// Read bounds what a project reads over Mixpanel's routes; no limits by default.
	Read ReadLimits
	// Ready says whether the process can serve; nil means always.
	Ready func(context.Context) error
}

// Conns are the connections to the services; one connection may serve for all.
type Conns struct {
	Registry, CohortSync, Ingestion grpc.ClientConnInterface
}

// DefaultMaxBodyBytes is the bound of a body when none is configured.
const DefaultMaxBodyBytes = 16 << 20

func (c *Config) setDefaults() {
	if c.MaxBodyBytes == 0 {
		c.MaxBodyBytes = DefaultMaxBodyBytes
	}
	if c.MaxConcurrent == 0 {
		c.MaxConcurrent = 1024
	}
	if c.MaxInFlightBytes == 0 {
		c.MaxInFlightBytes = 64 << 20
	}
	if c.BodyTimeout == 0 {
		c.BodyTimeout = time.Minute
	}
}

// New returns the handler of all routes.
func New(ctx context.Context, cfg Config, conns Conns) (http.Handler, error) {
	cfg.setDefaults()
	rest, err := restMux(ctx, conns)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	health(mux, cfg.Ready)
	docs(mux)
	ingest := ingestionv1.NewIngestionServiceClient(conns.Ingestion)
	gate := inflight.New(cfg.MaxConcurrent, cfg.MaxInFlightBytes)
	mixpanelRoutes(mux, ingest, &cfg, gate)
	validateRoute(mux, ingest)
	readRoutes(mux, conns, &cfg, gate)
	hook := &webhook{receiver: cohortsyncv1.NewReceiverServiceClient(conns.CohortSync), gate: gate, maxBody: cfg.MaxBodyBytes}
	mux.Handle("POST /api/webhooks/mixpanel/{project}", hook)
	mux.Handle("POST /api/webhooks/mixpanel/{project}/{$}", hook)
	v1 := bounded(rest, cfg.MaxBodyBytes)
	mux.Handle("/v1/", v1)
	mux.Handle("POST /v1/projects/{project}/cohorts/{cohort}", &uploader{rest: rest, cohorts: cohortsyncv1.NewCohortServiceClient(conns.CohortSync), next: v1, pause: cfg.BodyTimeout})
	return cleaned(traced(bodies(unknownReadable(mux), cfg.BodyTimeout))), nil
}

func restMux(ctx context.Context, c Conns) (*runtime.ServeMux, error) {
	mux := runtime.NewServeMux(
		// Only Authorization goes on to gRPC (the library adds it by itself): no
		// header of a caller may pass for metadata of ours.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithErrorHandler(restError),
		runtime.WithRoutingErrorHandler(routingError),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{Marshaler: jsonMarshaler()}),
		runtime.WithMarshalerOption("text/event-stream", &eventStream{JSONPb: *jsonMarshaler()}),
	)
	for name, register := range map[string]func() error{
		"projects": func() error {
			return registryv1.RegisterProjectServiceHandlerClient(ctx, mux, registryv1.NewProjectServiceClient(c.Registry))
		},
		"connectors": func() error {
			return registryv1.RegisterConnectorServiceHandlerClient(ctx, mux, registryv1.NewConnectorServiceClient(c.Registry))
		},
		"cohorts": func() error {
			return cohortsyncv1.RegisterCohortServiceHandlerClient(ctx, mux, cohortsyncv1.NewCohortServiceClient(c.CohortSync))
		},
		"syncs": func() error {
			return cohortsyncv1.RegisterSyncServiceHandlerClient(ctx, mux, cohortsyncv1.NewSyncServiceClient(c.CohortSync))
		},
		"runs": func() error {
			return cohortsyncv1.RegisterRunServiceHandlerClient(ctx, mux, cohortsyncv1.NewRunServiceClient(c.CohortSync))
		},
		"ingestion": func() error {
			return ingestionv1.RegisterIngestionServiceHandlerClient(ctx, mux, ingestionv1.NewIngestionServiceClient(c.Ingestion))
		},
		"data": func() error {
			return ingestionv1.RegisterDataServiceHandlerClient(ctx, mux, ingestionv1.NewDataServiceClient(c.Ingestion))
		},
		"identity": func() error {
			return ingestionv1.RegisterIdentityServiceHandlerClient(ctx, mux, ingestionv1.NewIdentityServiceClient(c.Ingestion))
		},
		"usage": func() error {
			return ingestionv1.RegisterUsageServiceHandlerClient(ctx, mux, ingestionv1.NewUsageServiceClient(c.Ingestion))
		},
	} {
		if err := register(); err != nil {
			return nil, fmt.Errorf("gateway: %s: %w", name, err)
		}
	}
	return mux, nil
}

// jsonMarshaler speaks proto field names, as the contracts and docs do, refuses
// unknown fields, so that a misspelt one is an error and not ignored, and shows
// zeros: an absent count and a count of 0 must not look alike.
func jsonMarshaler() *runtime.JSONPb {
	return &runtime.JSONPb{
		MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true},
		UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
	}
}

// eventStream writes streams as server-sent events, for EventSource in browsers.
type eventStream struct{ runtime.JSONPb }

// ContentType implements runtime.Marshaler.
func (*eventStream) ContentType(any) string { return "text/event-stream" }

// StreamContentType implements runtime.StreamContentType.
func (*eventStream) StreamContentType(any) string { return "text/event-stream" }

// Marshal implements runtime.Marshaler.
func (e *eventStream) Marshal(v any) ([]byte, error) {
	b, err := e.JSONPb.Marshal(v)
	return append([]byte("data: "), b...), err
}

// Delimiter ends an event.
func (*eventStream) Delimiter() []byte { return []byte("\n\n") }

func health(mux *http.ServeMux, ready func(context.Context) error) {
	answer := func(w http.ResponseWriter, status int, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"status":%q}`+"\n", text) // the client went away
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if ready != nil {
			if err := ready(ctx); err != nil {
				answer(w, http.StatusServiceUnavailable, "not ready")
				return
			}
		}
		answer(w, http.StatusOK, "ready")
	})
}
