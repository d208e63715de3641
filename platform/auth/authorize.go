package auth

import (
	"context"
	"crypto/subtle"
	"regexp"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cohortbridge/cohortbridge/platform/basicauth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// InternalKeyHeader carries the key that our own services share.
const InternalKeyHeader = "x-cohortbridge-internal-key"

// Guard authenticates and authorizes calls.
type Guard struct {
	// Authenticator checks service accounts.
	Authenticator Authenticator
	// InternalKey is what our own services present; empty refuses all.
	InternalKey string
	// OperatorKey is the Bearer token of the operator; empty refuses all.
	OperatorKey string
	// Policy is the table to apply; nil means Policy.
	Policy map[string]Access
}

// Authorize returns the context with the principal when the call may go on.
// msg is the request.
func (g *Guard) Authorize(ctx context.Context, method string, msg any) (context.Context, error) {
	policy := g.Policy
	if policy == nil {
		policy = Policy
	}
	access := policy[method]
	if access.kind == denied {
		return nil, fault.New(fault.Denied, "METHOD_NOT_ALLOWED", "%s is not open to anyone", method)
	}
	if access.kind == public {
		return ctx, nil
	}
	p, err := g.principal(ctx)
	if err != nil {
		return nil, err
	}
	if err := allow(p, access, method, msg); err != nil {
		return nil, err
	}
	return NewContext(ctx, p), nil
}

func allow(p *Principal, access Access, method string, msg any) error {
	if p.ProjectSecret && !access.secret {
		return fault.New(fault.Denied, "SERVICE_ACCOUNT_REQUIRED", "%s is not open to a project secret; use a service account", method)
	}
	switch access.kind { //nolint:exhaustive // the others ask no more than a valid credential, or were decided before
	case internal:
		if !p.Internal {
			return fault.New(fault.Denied, "INTERNAL_ONLY", "%s is for internal services", method)
		}
	case operator:
		if !p.Operator && !p.Internal {
			return fault.New(fault.Denied, "OPERATOR_ONLY", "%s needs the operator key", method)
		}
	case project:
		name, err := projectOf(msg)
		if err != nil {
			return err
		}
		if have := p.RoleIn(name); have < access.role {
			return fault.New(fault.Denied, "ROLE_REQUIRED", "you need the role %s in %s for %s, or the project does not exist", strings.TrimPrefix(access.role.String(), "ROLE_"), name, method[strings.LastIndexByte(method, '/')+1:]).With("project", name)
		}
	}
	return nil
}

func (g *Guard) principal(ctx context.Context) (*Principal, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if keys := md.Get(InternalKeyHeader); len(keys) == 1 {
		if same(keys[0], g.InternalKey) {
			return &Principal{Name: "internal", Internal: true}, nil
		}
		return nil, fault.New(fault.Unauthenticated, "WRONG_INTERNAL_KEY", "the internal key is wrong")
	}
	header := ""
	if h := md.Get("authorization"); len(h) > 0 {
		header = h[0]
	}
	scheme, rest, _ := strings.Cut(header, " ")
	switch strings.ToLower(scheme) {
	case "bearer":
		if same(strings.TrimSpace(rest), g.OperatorKey) {
			return &Principal{Name: "operator", Operator: true}, nil
		}
		return nil, fault.New(fault.Unauthenticated, "WRONG_TOKEN", "the bearer token is wrong")
	case "basic":
		user, secret, ok := basicauth.Parse(header)
		if !ok {
			return nil, fault.New(fault.Unauthenticated, "BAD_CREDENTIAL", "authorization: Basic needs user:secret, base64-encoded")
		}
		return g.Authenticator.Authenticate(ctx, user, secret)
	}
	return nil, fault.New(fault.Unauthenticated, "NO_CREDENTIAL", "authorization: send Basic with a service account's username and secret")
}

func same(got, want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}

var projectName = regexp.MustCompile(`^projects/[0-9]{1,18}(?:/|$)`)

// projectOf finds the project a request is about: in its parent, its name, or
// the name of the resource it carries.
func projectOf(msg any) (string, error) {
	m, ok := msg.(proto.Message)
	if !ok {
		return "", fault.New(fault.Internal, "NOT_PROTO", "request is no protobuf message")
	}
	r := m.ProtoReflect()
	for _, f := range []protoreflect.Name{"parent", "name"} {
		if fd := r.Descriptor().Fields().ByName(f); fd != nil && fd.Kind() == protoreflect.StringKind {
			return cutProject(string(f), r.Get(fd).String())
		}
	}
	fields := r.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Kind() != protoreflect.MessageKind || fd.IsList() || fd.IsMap() {
			continue
		}
		if nd := fd.Message().Fields().ByName("name"); nd != nil && nd.Kind() == protoreflect.StringKind {
			return cutProject(string(fd.Name())+".name", r.Get(fd).Message().Get(nd).String())
		}
	}
	return "", fault.New(fault.Internal, "NO_PROJECT", "request names no project")
}

func cutProject(field, name string) (string, error) {
	m := projectName.FindString(name)
	if m == "" {
		return "", fault.Field(field, "want projects/{project}…, with a number for the project")
	}
	return strings.TrimSuffix(m, "/"), nil
}

// Unary is the interceptor for unary calls.
func (g *Guard) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, err := g.Authorize(ctx, info.FullMethod, req)
	if err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// Stream is the interceptor for streams. The first message names the project,
// so it is there that the call is authorized; no handler code has run by then
// except its first receive, which generated code does before anything else.
func (g *Guard) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return handler(srv, &guardedStream{ServerStream: ss, guard: g, method: info.FullMethod, ctx: ss.Context()})
}

type guardedStream struct {
	grpc.ServerStream
	guard  *Guard
	method string
	ctx    context.Context //nolint:containedctx // a ServerStream is how gRPC hands its context over
	done   bool
}

// Context is the stream's context, with the principal once the first message came.
func (s *guardedStream) Context() context.Context { return s.ctx }

// RecvMsg receives, and authorizes on the first message.
func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if s.done {
		return nil
	}
	ctx, err := s.guard.Authorize(s.ctx, s.method, m)
	if err != nil {
		return err
	}
	s.ctx, s.done = ctx, true
	return nil
}
