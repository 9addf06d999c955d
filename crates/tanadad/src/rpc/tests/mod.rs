mod calls;
mod coverage;
mod events;
mod logins;
mod tasks;
