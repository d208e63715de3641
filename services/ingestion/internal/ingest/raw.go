package ingest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/cohortbridge/cohortbridge/platform/basicauth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/inflight"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

// Deps are what an Ingester works with.
type Deps struct {
	// Registry knows the projects and their credentials.
	Registry project.Registry
	// Pipeline stores events; Ledger, Resolver and Systems keep profiles and who is who.
	Pipeline *Pipeline
	Ledger   ledger.Ledger
	Resolver *identity.Resolver
	Systems  *Systems
	// Limits bound one request, Gate all that are being worked on, Rate what a
	// project sends in a minute; the last two may be nil.
	Limits wire.Limits
	Gate   *inflight.Gate
	Rate   *Rate
	// Now tells the time.
	Now project.Clock
}

// Ingester takes requests of Mixpanel's wire and typed batches.
type Ingester struct{ Deps }

// NewIngester puts the decoders in front of a pipeline.
func NewIngester(d *Deps) *Ingester { return &Ingester{*d} }

// Systems remembers the identity system in force for each project; it never
// changes once it is known.
type Systems struct {
	ledger ledger.Ledger
	known  sync.Map // project id → project.IdentitySystem
}

// NewSystems makes an empty memory over a ledger.
func NewSystems(l ledger.Ledger) *Systems { return &Systems{ledger: l} }

// Of returns the system of a project that Freeze has seen.
func (s *Systems) Of(p *project.Project) project.IdentitySystem {
	if v, ok := s.known.Load(p.ID); ok {
		sys, _ := v.(project.IdentitySystem)
		return sys
	}
	return p.Identity
}

// Freeze makes sure that the ledger knows the project and its system.
func (s *Systems) Freeze(ctx context.Context, p *project.Project) (project.IdentitySystem, error) {
	if v, ok := s.known.Load(p.ID); ok {
		sys, _ := v.(project.IdentitySystem)
		return sys, nil
	}
	sys, err := s.ledger.Freeze(ctx, p.ID, p.Identity)
	if err != nil {
		return 0, err
	}
	if sys != p.Identity {
		slog.WarnContext(ctx, "identity system differs from the registry's; the one the data was stored with stays in force", "project", p.ID, "in_force", sys.String(), "registry", p.Identity.String())
	}
	s.known.Store(p.ID, sys)
	return sys, nil
}

// Raw takes one request and returns the HTTP answer to send.
func (in *Ingester) Raw(ctx context.Context, r *wire.Request) *wire.Response {
	ctx, span := tracer.Start(ctx, "ingestion.ingest_raw", trace.WithAttributes(attribute.String("cohortbridge.endpoint", r.Endpoint.String()), attribute.Int("cohortbridge.body.bytes", len(r.Body))))
	defer span.End()
	params := wire.QueryParams(r)
	resp, err := in.admitted(ctx, r, &params)
	if err != nil {
		resp = in.refuse(ctx, r.Endpoint, &params, err)
	}
	span.SetAttributes(attribute.Int("http.response.status_code", resp.Status))
	if resp.Status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, http.StatusText(resp.Status))
	}
	return resp
}

var errBusy = fault.New(fault.Exhausted, "TOO_MANY_REQUESTS", "The server is busy with too many requests. Please retry the request with exponential backoff.").Retry(time.Second)

func (in *Ingester) admitted(ctx context.Context, r *wire.Request, params *wire.Params) (*wire.Response, error) {
	room, ok := in.Gate.Enter(int64(len(r.Body)))
	if !ok {
		return nil, errBusy
	}
	defer room.Leave()
	defer in.Pipeline.Begin()()
	var proj *project.Project
	if r.Endpoint == wire.Import && !r.ProjectInForm(params) {
		var err error
		// Before anything is decompressed: a stranger costs a look-up, not a body.
		if proj, err = in.authenticate(ctx, r.Authorization, params.ProjectID); err != nil {
			return nil, err
		}
	}
	limits := in.Limits
	limits.Grow = func(n int) error {
		if !room.Grow(int64(n)) {
			return errBusy
		}
		return nil
	}
	payload, err := wire.Open(r, limits)
	defer payload.Release()
	asked := params.ProjectID
	*params = payload.Params
	if err != nil {
		return nil, err
	}
	switch {
	case r.Endpoint == wire.Engage || r.Endpoint == wire.Groups:
		return in.profiles(ctx, r, payload)
	case r.Endpoint == wire.Import && (proj == nil || params.ProjectID != asked):
		// The form names the project; it must be the credential's too.
		if proj, err = in.authenticate(ctx, r.Authorization, params.ProjectID); err != nil {
			return nil, err
		}
	}
	return in.events(ctx, r, payload, proj)
}

func (in *Ingester) refuse(ctx context.Context, e wire.Endpoint, p *wire.Params, err error) *wire.Response {
	if r, ok := errors.AsType[*wire.Refusal](err); ok {
		return wire.Refused(e, p, r)
	}
	f := fault.As(err)
	switch fault.CodeOf(err) {
	case fault.Unauthenticated, fault.NotFound:
		return wire.Refused(e, p, &wire.Refusal{Status: http.StatusUnauthorized, Text: "Invalid credentials"})
	case fault.Denied: // no 403: Mixpanel's /import has none, and its clients read the text of a 401
		return wire.Refused(e, p, &wire.Refusal{Status: http.StatusUnauthorized, Text: f.Public})
	case fault.Invalid:
		return wire.Refused(e, p, &wire.Refusal{Status: http.StatusBadRequest, Text: f.Public})
	case fault.TooLarge:
		return wire.Refused(e, p, &wire.Refusal{Status: http.StatusRequestEntityTooLarge, Text: f.Public})
	case fault.Exhausted:
		return wire.Busy(http.StatusTooManyRequests, f.Public, int(f.RetryAfter/time.Second))
	case fault.Unavailable:
		return wire.Busy(http.StatusServiceUnavailable, "temporarily unavailable: retry with exponential backoff", int(f.RetryAfter/time.Second))
	default:
		slog.ErrorContext(ctx, "ingest failed", "endpoint", e.String(), "error", err)
		return wire.Refused(e, p, &wire.Refusal{Status: http.StatusInternalServerError, Text: "internal error"})
	}
}

// authenticate finds the project of an /import.
func (in *Ingester) authenticate(ctx context.Context, header, projectID string) (*project.Project, error) {
	user, secret, ok := basicauth.Parse(header)
	if !ok {
		return nil, fault.New(fault.Unauthenticated, "CREDENTIAL_MISSING", "a Basic credential is required")
	}
	return in.Registry.Authenticate(ctx, project.Credential{Username: user, Secret: secret, ProjectID: projectID})
}

func (in *Ingester) events(ctx context.Context, r *wire.Request, payload *wire.Payload, proj *project.Project) (*wire.Response, error) {
	sc, _ := scratches.Get().(*scratch)
	defer sc.give()
	sc.dec.SetHost(hostname(r.Host))
	rules := event.Rules{Endpoint: event.Track, NowMS: in.Now().UnixMilli()}
	if r.Endpoint == wire.Import {
		rules.Endpoint, rules.Strict = event.Import, payload.Params.Strict
	} else if payload.Params.IP {
		rules.HashAddress = r.ClientIP
	}
	_, span := tracer.Start(ctx, "ingestion.decode")
	err := each(payload, sc)
	span.SetAttributes(attribute.Int("cohortbridge.events", len(sc.events)), attribute.Int("cohortbridge.json.bytes", len(payload.JSON)), attribute.Int("cohortbridge.events.invalid", len(sc.failures)))
	span.End()
	if err != nil {
		return nil, err
	}
	if err := in.within(ctx, sc, proj, len(payload.JSON)); err != nil {
		return nil, err
	}
	failures, ignored, err := in.finish(ctx, sc, &rules, proj, sc.failures)
	if err != nil {
		return nil, err
	}
	if _, err := in.Pipeline.Submit(ctx, sc.good, r.Endpoint == wire.Import); err != nil {
		return nil, err
	}
	accepted := len(sc.good) + ignored
	byIndex(failures)
	if r.Endpoint == wire.Import {
		return wire.Imported(&payload.Params, accepted, failures), nil
	}
	text := "no valid event"
	if len(failures) > 0 {
		text = failures[0].Message
	}
	return wire.Simple(&payload.Params, accepted > 0 || len(failures) == 0, text), nil
}

// hostname is a Host header without the port.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

func byIndex(failures []*event.Failure) {
	slices.SortStableFunc(failures, func(a, b *event.Failure) int { return a.Index - b.Index })
}

// finish gives events their project and applies the rules. Events that pass are
// collected in sc.good.
func (in *Ingester) finish(ctx context.Context, sc *scratch, rules *event.Rules, proj *project.Project, failures []*event.Failure) (_ []*event.Failure, ignored int, err error) {
	var system project.IdentitySystem
	var token []byte // of proj, when it was found by token
	byToken := proj == nil
	if !byToken {
		if system, err = in.Systems.Freeze(ctx, proj); err != nil {
			return nil, 0, err
		}
	}
	for i := range sc.events {
		ev := &sc.events[i]
		if byToken && (proj == nil || !bytes.Equal(token, ev.Token)) {
			if len(ev.Token) == 0 {
				why := "missing; send the project's token"
				if ev.BadToken {
					why = "must be a string, the project's token"
				}
				failures = append(failures, ev.Invalid("properties.token", why))
				continue
			}
			p, err := in.Registry.ByToken(ctx, string(ev.Token))
			if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
				failures = append(failures, ev.Invalid("properties.token", "no such project"))
				continue
			}
			if err != nil {
				return nil, 0, err
			}
			if system, err = in.Systems.Freeze(ctx, p); err != nil {
				return nil, 0, err
			}
			proj, token = p, ev.Token
		}
		if ev.Ignored {
			ignored++
			continue
		}
		ev.Project = proj
		rules.System = system
		if rules.Endpoint == event.Track && ev.Name == "$merge" {
			failures = append(failures, ev.Invalid("event", "$merge is taken by /import only"))
			continue
		}
		if f := ev.Finish(rules); f != nil {
			failures = append(failures, f)
			continue
		}
		sc.good = append(sc.good, ev)
	}
	return failures, ignored, nil
}

// Import takes typed events: the same JSON and rules as a strict /import, but
// `$insert_id` may be missing. json is an array of event objects.
func (in *Ingester) Import(ctx context.Context, proj *project.Project, json []byte) (Result, []*event.Failure, error) {
	room, ok := in.Gate.Enter(int64(len(json)))
	if !ok {
		return Result{}, nil, errBusy
	}
	defer room.Leave()
	defer in.Pipeline.Begin()()
	sc := &scratch{dec: event.NewDecoder(len(json))}
	if err := each(&wire.Payload{JSON: json}, sc); err != nil {
		return Result{}, nil, asFault(err)
	}
	if err := in.within(ctx, sc, proj, len(json)); err != nil {
		return Result{}, nil, err
	}
	rules := event.Rules{Endpoint: event.Import, Strict: true, OptionalInsertID: true, NowMS: in.Now().UnixMilli()}
	failures, _, err := in.finish(ctx, sc, &rules, proj, sc.failures)
	if err != nil {
		return Result{}, nil, err
	}
	res, err := in.Pipeline.Submit(ctx, sc.good, true)
	return res, failures, err
}

func asFault(err error) error {
	if r, ok := errors.AsType[*wire.Refusal](err); ok {
		if r.Status == http.StatusRequestEntityTooLarge {
			return fault.New(fault.TooLarge, "BATCH_TOO_LARGE", "%s", r.Text)
		}
		return fault.New(fault.Invalid, "INVALID_JSON", "%s", r.Text)
	}
	return err
}
