package gateway

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

// restError answers with {code, message, details}. A body that is no valid JSON
// of the request never reaches a service, so it is here that it gets the details
// that every other error has.
func restError(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	if b, ok := r.Body.(*watched); ok && b.err != nil {
		err = unread(ctx, b.err)
		if code, _ := bodyProblem(b.err); code == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
	} else if s := status.Convert(err); s.Code() == codes.InvalidArgument && len(s.Details()) == 0 {
		method, _ := runtime.RPCMethod(ctx)
		err = rpc.ToStatus(ctx, malformed(method, s.Message()))
	}
	runtime.DefaultHTTPErrorHandler(ctx, mux, m, w, r, err)
}

// unread is the error of a body that could not be read to its end.
func unread(ctx context.Context, err error) error {
	code, text := bodyProblem(err)
	f := fault.New(fault.Invalid, "BODY_BROKE_OFF", "%s", text)
	switch code {
	case http.StatusServiceUnavailable:
		f = fault.New(fault.Unavailable, "BODY_TIMEOUT", "%s", text).Retry(time.Second)
	case http.StatusRequestEntityTooLarge:
		f = fault.New(fault.TooLarge, "BODY_TOO_LARGE", "%s", text)
	}
	return &runtime.HTTPStatusError{HTTPStatus: code, Err: rpc.ToStatus(ctx, f)}
}

// routingError answers a path or a method that does not exist.
func routingError(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	if code != http.StatusMethodNotAllowed {
		runtime.DefaultRoutingErrorHandler(ctx, mux, m, w, r, code)
		return
	}
	restError(ctx, mux, m, w, r, &runtime.HTTPStatusError{HTTPStatus: code, Err: status.Error(codes.Unimplemented, "this path does not know the method "+r.Method)})
}

var (
	// protojson puts a no-break space into its texts now and then, so that nobody
	// compares them.
	noBreak = strings.NewReplacer("\u00a0", " ")
	// fieldName finds the field in "invalid value for string field displayName: 7"
	// and in "unknown field \"x\"".
	fieldName = regexp.MustCompile(`field "?([A-Za-z_.]+)"?`)
	upper     = regexp.MustCompile(`[A-Z]`)
	// badValue is where protojson repeats the value it refused, which may be
	// somebody's data.
	badValue = regexp.MustCompile(`(invalid value for [A-Za-z0-9_.]+ (?:type|field [A-Za-z0-9_.]+)): .*`)
	// badEnum is a name of an enum that there is not, in a body.
	badEnum = regexp.MustCompile(`^(\(line [0-9:]+\): )?invalid value for enum field ([A-Za-z0-9_]+)`)
	// badParameter and manyParameters are refusals of the query; a value follows.
	badParameter   = regexp.MustCompile(`^parsing (?:field|list) "([A-Za-z0-9_]+)"`)
	manyParameters = regexp.MustCompile(`^too many values for field "([A-Za-z0-9_]+)"`)
)

// malformed is the fault of a request to a method whose JSON or query can't be read.
func malformed(method, text string) *fault.Error {
	text = strings.TrimSpace(strings.TrimPrefix(noBreak.Replace(text), "proto:"))
	if m := manyParameters.FindStringSubmatch(text); m != nil {
		return parameter(m[1], "given more than once; want one value")
	}
	if m := badParameter.FindStringSubmatch(text); m != nil {
		return parameter(m[1], want(fieldOf(method, m[1], func(protoreflect.FieldDescriptor) bool { return true })))
	}
	text = badValue.ReplaceAllString(text, "$1")
	m := fieldName.FindStringSubmatch(text)
	if m == nil {
		return fault.New(fault.Invalid, "MALFORMED_JSON", "body: %s", text)
	}
	// The contracts, and so our answers, spell names with underscores.
	field := upper.ReplaceAllStringFunc(m[1], func(c string) string { return "_" + strings.ToLower(c) })
	text = strings.ReplaceAll(text, m[1], field)
	if m := badEnum.FindStringSubmatch(text); m != nil {
		if f := fieldOf(method, m[2], isEnum); f != nil {
			text = m[1] + m[2] + " " + rpc.EnumRule(f)
		}
	}
	return &fault.Error{Code: fault.Invalid, Reason: "MALFORMED_JSON", Public: "body: " + text, Violations: []fault.Violation{{Field: field, Description: text}}}
}

// parameter is the fault of a parameter of the query.
func parameter(name, what string) *fault.Error {
	f := fault.Field(name, "%s", what)
	f.Reason = "MALFORMED_QUERY"
	return f
}

// want says what a parameter must be.
func want(f protoreflect.FieldDescriptor) string {
	if f == nil {
		return "can't be read"
	}
	switch f.Kind() {
	case protoreflect.EnumKind:
		return rpc.EnumRule(f)
	case protoreflect.BoolKind:
		return "must be true or false"
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return "must be a number"
	case protoreflect.MessageKind:
		if f.Message().FullName() == "google.protobuf.Timestamp" {
			return "must be a time such as 2026-11-01T10:00:00Z"
		}
		return "can't be read"
	case protoreflect.BytesKind:
		return "must be base64"
	default:
		return "must be a whole number within its range"
	}
}

// fieldOf finds a field by its name, wherever it is in the request of a method
// ("/package.Service/Method"), the outermost first; nil when there is none that fits.
func fieldOf(method, name string, fits func(protoreflect.FieldDescriptor) bool) protoreflect.FieldDescriptor {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")))
	md, ok := d.(protoreflect.MethodDescriptor)
	if err != nil || !ok {
		return nil
	}
	messages := []protoreflect.MessageDescriptor{md.Input()}
	for i := 0; i < len(messages); i++ {
		fields := messages[i].Fields()
		for j := range fields.Len() {
			f := fields.Get(j)
			if f.TextName() == name && fits(f) {
				return f
			}
			if m := f.Message(); m != nil && !slices.Contains(messages, m) {
				messages = append(messages, m)
			}
		}
	}
	return nil
}

func isEnum(f protoreflect.FieldDescriptor) bool { return f.Kind() == protoreflect.EnumKind }
