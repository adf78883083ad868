// A library in Rust: state behind locks, a table of trait objects, what each thread has, panics that are caught.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::raw::c_long;
use std::panic;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, Once};

const VERSION: c_long = (env!("VERSION").as_bytes()[0] - b'0') as c_long;

static CALLS: AtomicI64 = AtomicI64::new(0);
static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static ONCE: Once = Once::new();
static TABLE: Mutex<Option<HashMap<i64, i64>>> = Mutex::new(None);

thread_local! {
    static OWN: Cell<i64> = const { Cell::new(100) };
}

trait Shape: Send {
    fn area(&self) -> i64;
}

struct Square(i64);
struct Circle(i64);

impl Shape for Square {
    fn area(&self) -> i64 {
        self.0 * self.0 * VERSION
    }
}

impl Shape for Circle {
    fn area(&self) -> i64 {
        3 * self.0 * self.0 + VERSION * 1000
    }
}

static SHAPES: Mutex<Vec<Box<dyn Shape>>> = Mutex::new(Vec::new());

#[no_mangle]
pub extern "C" fn rust_make(size: c_long) -> c_long {
    let mut shapes = SHAPES.lock().unwrap();
    shapes.push(Box::new(Square(size)));
    shapes.push(Box::new(Circle(size)));
    NAMES.lock().unwrap().push(format!("made {size} by {VERSION}"));
    shapes.len() as c_long
}

#[no_mangle]
pub extern "C" fn rust_areas(_: c_long) -> c_long {
    SHAPES.lock().unwrap().iter().map(|shape| shape.area()).sum()
}

#[no_mangle]
pub extern "C" fn rust_calls(by: c_long) -> c_long {
    (CALLS.fetch_add(by, Ordering::SeqCst) + by) * VERSION
}

#[no_mangle]
pub extern "C" fn rust_once(_: c_long) -> c_long {
    ONCE.call_once(|| *TABLE.lock().unwrap() = Some(HashMap::from([(1, VERSION * 10)])));
    TABLE.lock().unwrap().as_ref().unwrap()[&1] * 1000 + VERSION
}

#[no_mangle]
pub extern "C" fn rust_own(by: c_long) -> c_long {
    OWN.with(|own| own.set(own.get() + by));
    OWN.with(|own| own.get()) + VERSION * 10000
}

#[no_mangle]
pub extern "C" fn rust_caught(code: c_long) -> c_long {
    let result = panic::catch_unwind(|| {
        if code > 5 {
            panic::resume_unwind(Box::new(code * 10 + VERSION));
        }
        -VERSION
    });
    match result {
        Ok(value) => value,
        Err(payload) => *payload.downcast_ref::<c_long>().unwrap(),
    }
}
